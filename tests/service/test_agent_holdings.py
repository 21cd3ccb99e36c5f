"""Heartbeats name what the node holds of MAPs: after a start, and soon after something has come."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gurney.content import digest_of
from gurney.model.map import StaticContent
from gurney.model.run import short
from gurney.runtime.folder import copy_path, remove_tree
from gurney.testing.nats import NatsServer
from tests.service.agent_house import INPUT, URN, House, a_host, neighbours

pytestmark = pytest.mark.needs("nats")


@pytest.fixture
async def house(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    """A house whose agent is still to be started."""
    async with neighbours(a_host(nats_server.url, tmp_path, heartbeat_interval=0.05)) as house:
        yield house


async def tells(house: House, *digests: str) -> None:
    """Wait until heartbeats name these and no others."""
    named = tuple(sorted(map(short, digests)))
    await house.scheduler.until(lambda: house.scheduler.heartbeats and house.scheduler.heartbeats[-1].images == named)


async def test_copies_of_before_are_told(house: House) -> None:
    """Whoever starts knows what it has."""
    await house.agent_starts()
    await tells(house, house.digest)


async def test_the_copy_that_a_run_brings_is_told(house: House) -> None:
    """Its input goes with it, and is never told."""
    await asyncio.to_thread(remove_tree, copy_path(house.settings.data / "maps", house.digest))
    await house.payload.add("weights", b"w" * 1000)
    await house.agent_starts()
    await tells(house)
    await house.finish("true")
    await tells(house, house.digest)


async def test_what_a_map_brings_along_is_told(house: House) -> None:
    """Once a run has it, as the copy of the MAP is."""
    await house.payload.add("weights", b"w" * 1000)
    await house.agent_starts()
    await tells(house, house.digest)
    digest = digest_of(view for _, view in house.payload.files.values())
    start = house.run("true", content=StaticContent(payload=INPUT, path="/opt/models", digest=digest))
    await house.start(start.but(content_token="token"))
    assert (await house.outcome(start)).ending == "succeeded"
    await tells(house, house.digest, digest)


async def test_what_a_registration_brings_is_told(house: House) -> None:
    """The node that has read a MAP holds it."""
    await house.agent_starts()
    await tells(house, house.digest)
    await asyncio.to_thread((house.app / "weights").write_text, "new")
    found = (await house.inspect(URN)).digest
    assert found
    assert found != house.digest
    await tells(house, house.digest, found)
