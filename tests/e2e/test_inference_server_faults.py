"""InferenceServer's clients while parts die: they stop for good on 500 and 552, so neither may appear for a moment."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gurney.testing.child import Child
from gurney.testing.stack import Stack
from tests.e2e.api import Api
from tests.e2e.applications import make_maps
from tests.e2e.inference_server import InferenceServer, packed, waits
from tests.e2e.kill_stack import ENVIRONMENT
from tests.e2e.zips import unpacked

PENDING, FAILED = 551, 552
#: Seconds between two polls of a client, and for which a part stays away.
POLL_S, AWAY_S = 0.5, 1.0
#: Seconds in which all that is owed is done.
PATIENCE_S = 180
#: Of so many tasks one fails.
FAILS = 5
MODEL = "shell"
COPY = 'cp -r "$HOLOSCAN_INPUT_PATH/in" "$HOLOSCAN_OUTPUT_PATH/out"; mkdir "$HOLOSCAN_OUTPUT_PATH/empty"'

pytestmark = [pytest.mark.slow, pytest.mark.needs("mongo", "minio"), pytest.mark.timeout(3600)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """One of each service, so that each is away when it is killed."""
    maps = make_maps(tmp_path / "maps")
    with Stack(tmp_path / "data", maps, ENVIRONMENT | {"GURNEY_CPU": "2"}, replicas=1, agents=1) as running:
        yield running


@pytest.fixture
async def facade(stack: Stack, tmp_path: Path) -> AsyncIterator[InferenceServer]:
    """The façade, with its documents in MongoDB, and a model whose tasks do what their input says."""
    environment = {
        "GURNEY_MONGO_URL": stack.mongo.url,
        "GURNEY_INFERENCE_SERVER_CPU": "0.05",
        "GURNEY_INFERENCE_SERVER_MEMORY": str(16 * 1024**2),
    }
    (tmp_path / "facade").mkdir()
    facade = await asyncio.to_thread(InferenceServer, stack, tmp_path / "facade", **environment)
    await asyncio.to_thread(facade.start)
    await facade.model(human_readable_id=MODEL)
    yield facade
    await asyncio.to_thread(facade.child.stop)


class Client:
    """Somebody's program: it posts, polls, fetches; where a connection breaks it does the same again."""

    def __init__(self, facade: InferenceServer, session: aiohttp.ClientSession, number: int) -> None:
        self._facade = facade
        self._session = session
        self._fails = number % FAILS == 0
        self._files = {"in/a": f"content {number}", "in/b/c": f"{number}" * 999}
        self.codes: Counter[int] = Counter()
        self.output: dict[str, bytes] | None = None

    @property
    def faults(self) -> list[str]:
        """What is wrong with what it was told."""
        wanted = {"out/a": self._files["in/a"].encode(), "out/b/c": self._files["in/b/c"].encode(), "empty/": b""}
        strange = {code for code in self.codes if code not in {PENDING, FAILED if self._fails else 200}}
        found = [f"told {code}" for code in strange]
        return found + ([] if self._fails or self.output == wanted else [f"has {self.output}"])

    async def run(self) -> None:
        script = "exit 3" if self._fails else COPY
        body = packed(script, self._files)
        uid = json.loads(await self._until_told(body))
        while True:
            code, found = await self._asked("GET", f"/api/tasks/{uid}")
            self.codes[code] += 1
            if code != PENDING:
                self.output = unpacked(found) if code == 200 else None
                return
            await asyncio.sleep(POLL_S)

    async def _until_told(self, body: bytes) -> bytes:
        form = {"model_human_readable_id": MODEL}
        code, found = await self._asked("POST", "/api/tasks/", body, **form)
        assert code == 200, found
        return found

    async def _asked(self, method: str, path: str, body: bytes | None = None, **query: str) -> tuple[int, bytes]:
        while True:
            data = None
            if body is not None:
                data = aiohttp.FormData()
                data.add_field("zip_file", body, filename="input.zip")
            try:
                url = self._facade.bases["public"] + path
                async with self._session.request(method, url, data=data, params=query) as answer:
                    return answer.status, await answer.read()
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)


async def clients_of(facade: InferenceServer, count: int) -> list[Client]:
    """Run so many clients at once, to their ends."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        clients = [Client(facade, session, number) for number in range(count)]
        await asyncio.gather(*(client.run() for client in clients))
    return clients


@asynccontextmanager
async def dying(parts: dict[str, Child]) -> AsyncIterator[Counter[str]]:
    """Kill one part after another while the context is open; each comes back before the next dies."""
    killed: Counter[str] = Counter()

    async def kill() -> None:
        for name in itertools.cycle(parts):
            await asyncio.to_thread(parts[name].kill)
            killed[name] += 1
            await asyncio.sleep(AWAY_S)
            await asyncio.shield(asyncio.to_thread(parts[name].start))
            await asyncio.sleep(AWAY_S)

    task = asyncio.create_task(kill())
    try:
        yield killed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for part in parts.values():
            if not part.runs:
                await asyncio.to_thread(part.start)


@pytest.mark.req("INF-02", "INF-09")
@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.long)])
async def test_many_posts_and_polls_at_once(facade: InferenceServer, count: int) -> None:
    """Nobody is told what is not allowed at that moment, each gets what is his, and no scratch is left."""
    clients = await clients_of(facade, count)
    assert [client.faults for client in clients if client.faults] == []
    await clean(facade, count)


@pytest.mark.req("INF-02", "INF-09")
@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.long)])
async def test_posts_and_polls_while_parts_are_killed(facade: InferenceServer, stack: Stack, count: int) -> None:
    """What is away is waited for: a task that is alive is pending, whichever part has just died, the façade too."""
    parts = {"facade": facade.child, **stack.parts}
    clients: list[Client] = []
    async with dying(parts) as killed:
        while len(clients) < count or len(killed) < len(parts):
            clients += await clients_of(facade, count)
    print(f"{len(clients)} tasks, killed: {dict(killed)}, told: {dict(sum((c.codes for c in clients), Counter()))}")
    assert [client.faults for client in clients if client.faults] == []
    await clean(facade, None)


@pytest.mark.req("INF-09")
async def test_several_processes_serve_the_same(facade: InferenceServer, stack: Stack, tmp_path: Path) -> None:
    """What is posted to one is told by the other, in numbers of its own, also when the first is killed meanwhile."""
    (tmp_path / "other").mkdir()
    changes = {name: facade.environment[name] for name in ("GURNEY_MONGO_URL", "GURNEY_INFERENCE_SERVER_TOKEN")}
    other = await asyncio.to_thread(InferenceServer, stack, tmp_path / "other", **changes)
    await asyncio.to_thread(other.start)
    try:
        first, second = [await each.task(MODEL, packed(COPY)) for each in (facade, other)]
        waiting = await facade.task(MODEL, packed(waits(tmp_path / "gate", COPY)))
        await asyncio.to_thread(facade.child.kill)
        for uid in (first, second):
            assert "out/a.dcm" in unpacked((await other.output(uid)).must(200).body)
        await other.until(waiting, 2)
        await asyncio.to_thread((tmp_path / "gate").touch)
        (await other.output(waiting)).must(200)
        tasks = (await other.private("GET", "/api/tasks/")).must(200).json
        assert sorted(task["uid"] for task in tasks) == sorted([first, second, waiting])
        assert len({task["id"] for task in tasks}) == len(tasks)
        (await other.private("DELETE", f"/api/tasks/{first}")).must(200)
        await asyncio.to_thread(facade.start)
        (await facade.public("GET", f"/api/tasks/{first}")).must(554)
        (await facade.public("GET", f"/api/tasks/{second}")).must(200)
    finally:
        await asyncio.to_thread(other.child.stop)


async def clean(facade: InferenceServer, count: int | None) -> None:
    """Wait until no job is owed anything; then there are as many as tasks, and of payloads only what is kept.

    What was being posted as the façade died goes half a minute later.
    """
    async with Api(facade.server.url, facade.token) as api:
        assert await until_none(lambda: unsettled(api)) == []
        jobs = await api.all("/v1/jobs")
        assert count in {None, len(jobs)}
        scratch = {job["payload"] for job in jobs} - {job["results"] for job in jobs}
        assert await until_none(lambda: those_of(api, scratch)) == []


async def unsettled(api: Api) -> list[str]:
    """Return what is wrong with each job that is not finalized."""
    jobs = [job for job in await api.all("/v1/jobs") if not job["finalized_at"]]
    return [f"{job['labels']} {job['state']} since {job['created_at']}" for job in jobs]


async def those_of(api: Api, payloads: set[str]) -> list[str]:
    """Return payloads that are still there, and not just for an hour by a claim of a job that never came to be."""
    found = [each for each in await api.all("/v1/payloads") if each["id"] in payloads]
    jobs = {job["id"] for job in await api.all("/v1/jobs")}
    left = [each for each in found if not each["held_by"] or jobs.intersection(each["held_by"])]
    return [f"{each['id']} {each['labels']} {each['claims']} claims, held by {each['held_by']}" for each in left]


async def until_none(look: Callable[[], Awaitable[list[str]]]) -> list[str]:
    """Return what is left when there is nothing any more, or no patience."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while (found := await look()) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.5)
    return found
