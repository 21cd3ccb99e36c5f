"""What an agent keeps of MAPs, and when it lets go: over a real nats-server, with a MAP service that is a fake."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gurney.content import digest_of
from gurney.errors import StoreUnavailable
from gurney.model.common import Digests
from gurney.model.map import StaticContent
from gurney.model.run import StartRun
from gurney.runtime.folder import copy_path
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import MAP_NEEDED
from gurney.testing.nats import NatsServer
from services.agent import sweep
from tests.service.agent_house import INPUT, SECONDS, URN, Fake, House, a_host, neighbours

pytestmark = pytest.mark.needs("nats")

#: Writes a file and ends when another is there.
WAITS = 'touch "$OUT/begun"; until [ -e "$OUT/go" ]; do sleep 0.02; done; cat app.json'


class FakeMaps(Fake):
    """Says what is needed, and keeps what it was asked."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.needed: set[str] = set()
        self.questions: list[tuple[str, ...]] = []
        self.service = Service("map", settings).does(Parts(answers=self.answers({MAP_NEEDED: self._needed})))

    async def _needed(self, question: Digests) -> Digests:
        self.questions.append(question.digests)
        return Digests(digests=tuple(self.needed & set(question.digests)))

    async def rounds(self, number: int) -> None:
        """Wait until so many more questions came: of all but the last the work is done."""
        told = len(self.asked) + number
        await self.until(lambda: len(self.asked) >= told)


@pytest.fixture
def settings(nats_server: NatsServer, tmp_path: Path) -> Settings:
    """Settings of a host that looks at its copies often."""
    return a_host(nats_server.url, tmp_path, stop_grace=0.2, transfer_patience=10, reconcile_interval=0.05)


@pytest.fixture
async def house(settings: Settings) -> AsyncIterator[House]:
    """An agent that does not run yet, and its neighbours."""
    async with neighbours(settings) as house:
        yield house


@pytest.fixture
async def maps(house: House, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMaps]:
    """The MAP service. One answer is enough for a copy to go."""
    monkeypatch.setattr(sweep, "QUESTIONS", 0)
    fake = FakeMaps(house.settings)
    fake.needed.add(house.digest)
    async with fake.service:
        yield fake
        await house.agent_ends()


def copy_of(house: House) -> Path:
    return copy_path(house.settings.data / "maps", house.digest)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await asyncio.to_thread(holds):  # nobody tells
            await asyncio.sleep(0.02)


async def gone(path: Path) -> None:
    await until(lambda: not path.exists())


async def begun(house: House) -> tuple[StartRun, Path]:
    """Return a run that goes on until there is a file `go` in its output folder, and that folder."""
    start = await house.start(house.run(WAITS))
    output = house.settings.data / "agent" / "work" / start.run_id / "output"
    await until((output / "begun").exists)
    return start, output


async def other_copy(house: House, maps: FakeMaps) -> None:
    """Have a copy that is needed, and asked about also while a run has the other one."""
    maps.needed.add("sha256:" + "0" * 64)
    await asyncio.to_thread((house.settings.data / "maps" / ("0" * 64)).mkdir)


async def test_a_copy_goes_when_no_map_needs_it(house: House, maps: FakeMaps) -> None:
    """A copy stays as long as it is needed, and goes with the last MAP that needed it."""
    await house.agent_starts()
    await maps.rounds(3)
    assert copy_of(house).is_dir()
    maps.needed.clear()
    await gone(copy_of(house))
    await until(lambda: not list((house.settings.data / "maps").iterdir()))


async def test_one_answer_is_not_enough(house: House, maps: FakeMaps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy has been needed by nobody for some time before it goes."""
    monkeypatch.setattr(sweep, "QUESTIONS", 3600)
    maps.needed.clear()
    await house.agent_starts()
    await maps.rounds(4)
    assert copy_of(house).is_dir()


async def test_a_copy_that_a_run_has_stays(house: House, maps: FakeMaps) -> None:
    """While a run of it goes on nobody is even asked about a copy, whatever became of its MAP; then it goes."""
    await house.agent_starts()
    start, output = await begun(house)
    maps.needed.clear()
    await other_copy(house, maps)
    await maps.rounds(3)
    assert house.digest not in maps.questions[-1]
    assert copy_of(house).is_dir()
    await asyncio.to_thread((output / "go").touch)
    outcome = await house.outcome(start)
    assert (outcome.ending, outcome.log_tail) == ("succeeded", ('{"command": "sh"}',))
    await gone(copy_of(house))


async def test_a_run_that_was_found_again_keeps_its_copy(house: House, maps: FakeMaps) -> None:
    """An agent that starts anew knows from its journal what its runs have in hand."""
    await house.agent_starts()
    start, output = await begun(house)
    await house.agent_ends()
    maps.needed.clear()
    await other_copy(house, maps)
    await house.agent_starts()
    await maps.rounds(3)
    assert copy_of(house).is_dir()
    await asyncio.to_thread((output / "go").touch)
    assert (await house.outcome(start)).ending == "succeeded"
    await gone(copy_of(house))


async def test_without_an_answer_nothing_goes(house: House, maps: FakeMaps) -> None:
    """While the MAP service cannot answer, all copies stay; afterwards they are looked at again."""
    maps.needed.clear()
    maps.faults["needed"] = [StoreUnavailable("away")] * 4
    await house.agent_starts()
    await maps.until(lambda: not maps.faults["needed"])
    assert copy_of(house).is_dir()
    await gone(copy_of(house))


async def test_a_registration_that_comes_meanwhile_keeps_the_copy(house: House, maps: FakeMaps) -> None:
    """Who reads the MAP after the question was asked has the copy, although the answer says that nobody needs it."""
    maps.needed.clear()
    gate = maps.gate(MAP_NEEDED, answered=True)
    await house.agent_starts()
    await gate.reached.wait()
    assert (await house.inspect(URN)).digest == house.digest
    maps.needed.add(house.digest)
    gate.open()
    await maps.rounds(2)
    assert copy_of(house).is_dir()


async def test_a_run_that_comes_meanwhile_keeps_the_copy(house: House, maps: FakeMaps) -> None:
    """A run that is begun after the question was asked has the copy to its end, and the folder may have changed."""
    maps.needed.clear()
    gate = maps.gate(MAP_NEEDED, answered=True)
    await house.agent_starts()
    await gate.reached.wait()
    (house.app / "app.json").write_text("{}")
    start, output = await begun(house)
    await other_copy(house, maps)
    gate.open()
    await maps.rounds(3)
    await asyncio.to_thread((output / "go").touch)
    assert (await house.outcome(start)).log_tail == ('{"command": "sh"}',)


async def test_static_content_goes_with_its_last_map(house: House, maps: FakeMaps) -> None:
    """What a MAP brings along stays for the next run as long as it is needed, and no longer."""
    await house.payload.add("model", b"weights")
    digest = digest_of([view for _, view in house.payload.files.values()])
    maps.needed.add(digest)
    await house.agent_starts()
    start = house.run("true", content=StaticContent(payload=INPUT, path="/opt/models", digest=digest))
    await house.start(start.but(content_token="token"))
    assert (await house.outcome(start)).ending == "succeeded"
    kept = house.settings.data / "agent" / "content" / digest.removeprefix("sha256:")
    await house.is_clean()
    await maps.rounds(3)
    assert (kept / "model").read_bytes() == b"weights"
    maps.needed.discard(digest)
    await gone(kept)
    assert copy_of(house).is_dir()


async def test_many_copies_are_asked_about_in_several_messages(house: House, maps: FakeMaps) -> None:
    """No message has more digests than it may, and the answers of all count."""
    copies = [house.settings.data / "maps" / f"{number:064x}" for number in range(300)]
    for each in copies:
        each.mkdir()
    maps.needed |= {f"sha256:{each.name}" for each in copies[1:]}
    await house.agent_starts()
    await gone(copies[0])
    assert all(each.is_dir() for each in [*copies[1:], copy_of(house)])
    assert {len(question) for question in maps.questions[:2]} == {256, 45}
