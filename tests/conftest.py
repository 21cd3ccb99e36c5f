"""What every test has: profiles, the two reports, servers, and a loop in which nothing may block."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from gurney import telemetry
from gurney.settings import Settings
from gurney.testing.nats import NatsServer

pytest_plugins = [
    "tests.plugins.profiles",
    "tests.plugins.servers",
    "tests.plugins.requirements",
    "tests.plugins.matrix",
]


@pytest.fixture(autouse=True)
def blocking() -> Iterator[BlockBuster]:
    """A blocking call of Gurney's own code inside a running loop fails the test.

    Only stacks with a frame of `gurney` or `services` count: a test may read a file of its own. `gurney.testing` is
    made to be called from tests and counts as one. A test that needs an exception says where and why:
    `blocking.functions["os.stat"].can_block_in("some/file.py", "function")`.
    """
    with blockbuster_ctx(["gurney", "services"], excluded_modules=["gurney.testing"]) as guard:
        for call in ("os.stat", "io.BufferedReader.read", "io.TextIOWrapper.read"):
            if call in guard.functions:  # a logged traceback shows lines of source
                guard.functions[call].can_block_in("linecache.py", {"checkcache", "updatecache"})
        yield guard


@pytest.fixture(autouse=True, scope="session")
def telemetry_is_set_up() -> None:
    """Logs are JSON lines on standard error, as in production."""
    telemetry.setup(Settings(), "test")


@pytest.fixture(scope="session")
def session_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The nats-server of the whole run; tests ask for `nats_server`."""
    server = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield server
    server.stop()


@pytest.fixture
def nats_server(session_nats: NatsServer) -> Iterator[NatsServer]:
    """A running nats-server with JetStream and without streams; neither pause nor stop it."""
    yield session_nats
    session_nats.clean()


@pytest.fixture
def own_nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running nats-server for one test, which may pause, kill, wipe and start it again."""
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()
