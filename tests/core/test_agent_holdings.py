"""What a node tells of the MAPs that it holds."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gurney.errors import GurneyError, Unavailable
from services.agent.holdings import MOST, Holdings
from services.agent.patience import Crew

SECONDS = 10.0


class Source:
    """One that can be away, and notes that it was asked."""

    def __init__(self, *digests: str) -> None:
        self.digests = list(digests)
        self.fault: GurneyError | OSError | None = None
        self.asked = asyncio.Semaphore(0)

    async def __call__(self) -> list[str]:
        self.asked.release()
        if self.fault:
            raise self.fault
        return self.digests

    async def is_asked(self) -> None:
        async with asyncio.timeout(SECONDS):
            await self.asked.acquire()


def digest(number: int) -> str:
    return f"sha256:{number:064x}"[:7] + f"{number:012x}" + "0" * 52


@contextlib.asynccontextmanager
async def looking(*sources: Any) -> AsyncIterator[Holdings]:
    holdings, crew = Holdings(sources, 0), Crew()
    crew.start(holdings.run(), "looking")
    try:
        yield holdings
    finally:
        await crew.dismiss()


async def test_heartbeats_name_digests_in_short_and_in_one_order() -> None:
    """So that nodes which hold the same say the same."""
    holdings = Holdings([Source(digest(2), digest(1)), Source(digest(1))], 0)
    await holdings.look()
    assert holdings.told == ("000000000001", "000000000002")


async def test_heartbeats_stay_small() -> None:
    """Of more than they name, the last of the sources are left out; of each the least recently used."""
    first, second = Source(digest(0)), Source(*(digest(number) for number in range(1, 2 * MOST)))
    holdings = Holdings([first, second], 0)
    await holdings.look()
    assert holdings.told == tuple(digest(number)[7:19] for number in range(MOST))


@pytest.mark.parametrize("fault", [Unavailable("away"), OSError(5, "broken")])
async def test_what_cannot_be_looked_at_is_as_it_was(fault: GurneyError | OSError) -> None:
    """One source that is away changes nothing of another."""
    away, there = Source(digest(1)), Source(digest(2))
    holdings = Holdings([away, there], 0)
    await holdings.look()
    away.fault, there.digests = fault, [digest(3)]
    await holdings.look()
    assert holdings.told == (digest(1)[7:19], digest(3)[7:19])


async def test_news_are_looked_at_soon() -> None:
    """What a run brought here that was not known is told with a heartbeat soon; what is known needs no look."""
    source = Source(digest(1))
    async with looking(source) as holdings:
        await source.is_asked()
        holdings.brought(digest(1))
        assert not holdings._stale.is_set()
        source.digests.append(digest(2))
        holdings.brought(digest(2))
        await source.is_asked()
        assert holdings.told == (digest(1)[7:19], digest(2)[7:19])
