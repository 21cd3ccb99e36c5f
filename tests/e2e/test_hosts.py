"""Agents on hosts of their own: cut off from all others for less than the lease of their runs, and for longer."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gurney.testing.network import Network
from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.kill_load import Listener

#: A node is lost well before its runs are. A connection that was cut for 3 s may be of use again only 12 s later: TCP
#: waits twice as long before each try.
CUT_OFF = {"GURNEY_HEARTBEAT_INTERVAL": "0.4", "GURNEY_NODE_LOST_AFTER": "2", "GURNEY_RUN_LEASE": "15"}

pytestmark = [pytest.mark.slow, pytest.mark.needs("netns", "mongo", "minio"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, maps: Path) -> Iterator[Stack]:
    """A stack whose two agents are on hosts of their own."""
    folder = tmp_path_factory.mktemp("hosts")
    with (
        Network(folder / "network", 2) as network,
        Stack(folder / "data", maps, ENVIRONMENT | CUT_OFF, network=network) as running,
    ):
        yield running


@pytest.fixture
async def api(stack: Stack) -> AsyncIterator[Api]:
    """Its administrator."""
    async with Api(stack.url, stack.token) as client:
        yield client


class Notes:
    """What the runs of a test have written down: each a line when it begins."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "runs"
        self._folder = folder

    def script(self, wait: str) -> str:
        """Return a script that notes its run, what runs of its job are alive already, and then does `wait`."""
        return f"""
        pids=$(grep "^$GURNEY_JOB_ID " {self._file} | cut -d" " -f3)
        for pid in $pids; do kill -0 $pid && echo "$GURNEY_JOB_ID overlaps $pid" >> {self._file}; done
        echo "$GURNEY_JOB_ID $GURNEY_ATTEMPT $$" >> {self._file}
        {wait}
        echo "$GURNEY_ATTEMPT" > "$HOLOSCAN_OUTPUT_PATH/attempt"
        """

    def at(self, gate: str) -> str:
        """Return a wait until a gate is opened."""
        return f"until [ -e {self._folder / gate} ]; do sleep 0.05; done"

    def open(self, gate: str) -> None:
        (self._folder / gate).touch()

    def of(self, job: Json) -> list[str]:
        """Return the attempts of a job that were started, in order, and what was wrong about them."""
        lines = [line.split() for line in self._file.read_text().splitlines()]
        return [line[1] for line in lines if line[0] == job["id"]]

    def pid(self, job: Json) -> int:
        """Return the process of the latest run of a job."""
        lines = [line.split() for line in self._file.read_text().splitlines()]
        return int([line[2] for line in lines if line[0] == job["id"]][-1])


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    (tmp_path / "runs").touch()
    return Notes(tmp_path)


async def begin_together(api: Api, *scripts: str) -> tuple[list[Json], int]:
    """Begin jobs on one host; return them and the host's number."""
    jobs = [await work.begin(api, script, "shell") for script in scripts]
    (node,) = {job["node"] for job in jobs}
    return jobs, int(node.rpartition("-")[2]) - 1


async def node_is(api: Api, number: int, state: str) -> None:
    """Wait until the scheduler says so of the node."""
    async with asyncio.timeout(work.PATIENCE_S):
        while (await api.get(f"/v1/nodes/node-{number + 1}")).must(200).json["state"] != state:
            await asyncio.sleep(0.05)


async def ends(pid: int) -> None:
    """Wait until a process is no more."""
    async with asyncio.timeout(work.PATIENCE_S):
        while await asyncio.to_thread(work.is_alive, pid):
            await asyncio.sleep(0.05)


async def attempt_of(api: Api, job: Json) -> str:
    """Return which attempt's results a job has."""
    assert list(await work.results(api, job)) == ["attempt"]
    return (await work.result(api, job, "attempt")).decode().strip()


def what_counts(job: Json) -> Json:
    """Return what of an ended job must not change."""
    return {field: job[field] for field in ("state", "attempt", "node", "exit_code", "stopped_at", "results")}


async def test_job(api: Api, stack: Stack) -> None:
    """A job runs on an agent of another host, which has a network of its own, and its result comes back."""
    job = await work.shell(api, 'readlink /proc/self/ns/net > "$HOLOSCAN_OUTPUT_PATH/net"')
    assert (job["state"], job["attempt"]) == ("succeeded", 1)
    found = (await work.result(api, job, "net")).decode().strip()
    agent = stack.processes[job["node"]].pid
    theirs, ours = (str(Path(f"/proc/{which}/ns/net").readlink()) for which in (agent, "self"))
    assert found == theirs != ours


async def test_cut_off_for_less_than_the_lease(api: Api, stack: Stack, notes: Notes) -> None:
    """Runs go on while their host is cut off and its node lost; their results count, also of one that ended then."""
    assert stack.network
    jobs, number = await begin_together(api, notes.script(notes.at("first")), notes.script(notes.at("last")))
    with stack.network.cut_off(number):
        await node_is(api, number, "lost")
        notes.open("first")
        await ends(notes.pid(jobs[0]))
    await node_is(api, number, "ready")
    notes.open("last")
    done = [await work.ended(api, job["id"]) for job in jobs]
    assert [(job["state"], job["attempt"], notes.of(job)) for job in done] == [("succeeded", 1, ["1"])] * 2
    assert [await attempt_of(api, job) for job in done] == ["1", "1"]
    for job in jobs:
        await work.nothing_left(stack, job["id"])


async def test_drained(api: Api, stack: Stack, notes: Notes) -> None:
    """A host that is drained, lost, and back with its agent and its scheduler new, is drained still."""
    assert stack.network
    (job,), number = await begin_together(api, notes.script(notes.at("gate")))
    name = f"node-{number + 1}"
    (await api.post(f"/v1/nodes/{name}/drain")).must(200)
    with stack.network.cut_off(number):
        await node_is(api, number, "lost")
        assert (await api.get(f"/v1/nodes/{name}")).json["drained"]
    await node_is(api, number, "draining")
    for part in (name, *stack.of("scheduler")):
        with stack.without(part):
            pass
    others = [await work.shell(api, "true") for _ in range(3)]
    assert {other["node"] for other in others} == {f"node-{2 - number}"}
    await node_is(api, number, "draining")
    notes.open("gate")
    done = await work.ended(api, job["id"])
    assert (done["state"], done["attempt"], notes.of(job)) == ("succeeded", 1, ["1"])
    (await api.post(f"/v1/nodes/{name}/resume")).must(200)
    await node_is(api, number, "ready")


async def test_cut_off_for_longer_than_the_lease(api: Api, stack: Stack, notes: Notes) -> None:
    """A host ends its run itself before the next attempt begins elsewhere, and what it tells later changes nothing."""
    assert stack.network
    listener = Listener()
    lasts = '[ "$GURNEY_ATTEMPT" != 1 ] || sleep 1000'
    async with listener.listening() as url:
        handler = (await api.post("/v1/handlers", {"url": url})).must(201).json
        listener.secret = handler["secret"]
        jobs, number = await begin_together(api, notes.script(lasts), notes.script(notes.at("gate")))
        with stack.network.cut_off(number):
            await node_is(api, number, "lost")
            notes.open("gate")
            for job in jobs:  # one by itself, one for want of a lease
                await ends(notes.pid(job))
            done = [await work.ended(api, job["id"]) for job in jobs]
            assert {job["node"] for job in done} == {f"node-{2 - number}"}
            assert [(job["state"], job["attempt"]) for job in done] == [("succeeded", 2)] * 2
        await node_is(api, number, "ready")
        for job in jobs:
            await work.nothing_left(stack, job["id"])
        for job in done:
            assert what_counts(await work.ended(api, job["id"])) == what_counts(job)
            assert (notes.of(job), await attempt_of(api, job)) == (["1", "2"], "2")
        assert (await work.shell(api, "true"))["state"] == "succeeded"
        assert {event: len(ids) for job in done for event, ids in listener.of(job["id"]).items()} == {
            "job.succeeded": 1
        }
        assert listener.faults == []
        (await api.delete(f"/v1/handlers/{handler['id']}")).must(204)
