"""A blocking call inside the loop fails its test, when it is Gurney's own."""

import time
from pathlib import Path
from types import CodeType

import pytest
from blockbuster import BlockingError

import gurney

PACKAGE = Path(gurney.__file__).parent


def sleep_in(file: Path) -> CodeType:
    """Return code that blocks and that says to lie in a file."""
    return compile("time.sleep(0)", str(file), "exec")


async def test_blocking_call_of_gurney_is_caught() -> None:
    """A blocking call under a frame of the library raises."""
    with pytest.raises(BlockingError, match=r"time\.sleep"):
        exec(sleep_in(PACKAGE / "seed.py"), {"time": time})  # noqa: S102


async def test_blocking_call_of_a_service_is_caught() -> None:
    """A blocking call under a frame of a service raises."""
    with pytest.raises(BlockingError, match=r"time\.sleep"):
        exec(sleep_in(PACKAGE.parents[1] / "services" / "job" / "seed.py"), {"time": time})  # noqa: S102


async def test_tests_may_block() -> None:
    """A test and the doubles of `gurney.testing` may block: they stand outside of what they test."""
    time.sleep(0)  # noqa: ASYNC251
    exec(sleep_in(PACKAGE / "testing" / "seed.py"), {"time": time})  # noqa: S102


def test_blocking_outside_a_loop_is_fine() -> None:
    """Without a running loop nothing is held up."""
    exec(sleep_in(PACKAGE / "seed.py"), {"time": time})  # noqa: S102
