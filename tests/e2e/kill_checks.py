"""What must hold at the end. Each check returns its faults as lines: none is good."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from tests.e2e.kill_load import ENDS, EXIT_CODE, IMAGES, TERMINAL, Listener, Load
from tests.e2e.kill_server import Insistent

Faults = list[str]

#: Why a job ends whose attempts were all lost, and how many it has.
_LOST, _ATTEMPTS = {"node_lost", "internal"}, 3
#: More than the longest time after which something is made up for: a minute, and the rounds of a loaded machine.
MADE_UP_WITHIN_S = 150
#: Until only one is left of what there may be one of: a run that is just being forked is still called a supervisor, and
#: so is one that finds the place taken.
ALONE_WITHIN_S = 10


async def eventually(check: Callable[[], Awaitable[Faults]], within_s: float = MADE_UP_WITHIN_S) -> Faults:
    """Return the faults that stay."""
    deadline = time.monotonic() + within_s
    while (faults := await check()) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    return faults


async def all_items(server: Insistent, path: str) -> list[dict[str, Any]]:
    """Return the items of a list, through all pages."""
    items: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await server.insist("GET", f"{path}?limit=1000{cursor}")).json
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        cursor = f"&cursor={page['next_cursor']}"


# --- jobs ---


async def stuck(server: Insistent, load: Load) -> Faults:
    """Return the jobs that have not ended; note how the others did."""
    jobs = await all_items(server, "/v1/jobs")
    states = {job["id"]: job["state"] for job in jobs}
    for job in load.jobs.values():
        job.state = states.get(job.id or "")
    return [f"{job['id']} is {job['state']} {job['phase']}" for job in jobs if job["state"] not in TERMINAL]


async def jobs_are_right(
    server: Insistent, load: Load, starts: Path, *, lossy: bool, containers: Counter[tuple[str, int]] | None = None
) -> Faults:
    """No job is lost or twice, no attempt is started twice, each job ended as its MAP does, and at its first attempt.

    `lossy`: attempts were lost with the supervisor, so a job may need more, or fail because it had no more. So may one
    in a container, which goes down with its daemon, and which alone cannot note its starts. `containers`: how often the
    daemon says that it started them; then it was there all the time, so that they are as good as the others.
    """
    faults: Faults = []
    found = {job["id"]: job for job in await all_items(server, "/v1/jobs")}
    sent = {job.id: job for job in load.jobs.values()}
    faults += [f"job {job.key} is lost" for job in load.jobs.values() if job.id not in found]
    faults += [f"job {id_} was never asked for, or twice: {found[id_]['labels']}" for id_ in found.keys() - sent.keys()]
    started = started_runs(starts) + (containers or Counter())
    uncounted = IMAGES if containers is None else {}
    faults += [f"run {run} was started {count} times" for run, count in started.items() if count > 1]
    faults += [f"a run of no job: {job}" for job, _ in started if job not in found]
    for job in (found[id_] for id_ in found.keys() & sent.keys()):
        kind = sent[job["id"]].kind
        may_lose = lossy or kind in uncounted
        if (
            may_lose
            and job["state"] == "failed"
            and (job["reason"] or {})["code"] in _LOST
            and job["attempt"] == _ATTEMPTS
        ):
            continue
        code = EXIT_CODE if ENDS[kind] == "failed" else 0
        if (job["state"], job["exit_code"]) != (ENDS[kind], code) or (job["attempt"] != 1 and not may_lose):
            told = {key: job[key] for key in ("id", "state", "exit_code", "attempt", "reason")}
            faults.append(f"a {kind} job: {told}")
        if kind not in uncounted and (count := started[job["id"], job["attempt"]]) != 1:
            faults.append(f"{job['id']} ended, and its last attempt was started {count} times")
    return faults


async def results_are_right(server: Insistent, load: Load) -> Faults:
    """What a run wrote is there, once."""
    faults: Faults = []
    for job in load.jobs.values():
        if job.kind in {"slow", "image"} and job.state == "succeeded":
            answer = await server.insist("GET", f"/v1/jobs/{job.id}/results/who")
            if (answer.status, answer.body) != (200, f"{job.id}\n".encode()):
                faults.append(f"the result of {job.id}: {answer.status} {answer.body[:200]!r}")
    return faults


def lines_of(starts: Path) -> list[tuple[str, int, int, str]]:
    """Return (job, attempt, pid, what) of each line that a run wrote."""
    if not starts.exists():
        return []
    lines = [line.split() for line in starts.read_text().splitlines()]
    return [(job, int(attempt), int(pid), what) for job, attempt, pid, what in lines]


def started_runs(starts: Path) -> Counter[tuple[str, int]]:
    """Return how often each (job, attempt) was started."""
    return Counter((job, attempt) for job, attempt, _, what in lines_of(starts) if what == "start")


async def untold(load: Load, listener: Listener) -> Faults:
    """Return the jobs whose end the handler was not told."""
    await asyncio.sleep(0)
    ends = {job.id or "": f"job.{job.state}" for job in load.jobs.values()}
    return [
        f"the handler was not told {end} of {job}" for job, end in ends.items() if end not in listener.told.get(job, {})
    ]


def told_once(load: Load, listener: Listener) -> Faults:
    """Each event was told under one id, and each job has one end."""
    faults = list(listener.faults)
    for job, events in listener.told.items():
        faults += [f"{event} of {job} under {ids}" for event, ids in events.items() if len(ids) > 1]
        if len(events) > 1:
            faults.append(f"{job} ended as {sorted(events)}")
    known = {job.id for job in load.jobs.values()}
    return faults + [f"the handler was told of {job}" for job in listener.told if job not in known]


# --- files ---


async def files_are_right(server: Insistent, load: Load) -> Faults:
    """What is listed was sent, whole; what was acknowledged is there, to the byte."""
    faults: Faults = []
    for payload in {payload for payload, _ in load.files}:
        listed = {file["path"]: file for file in await all_items(server, f"/v1/payloads/{payload}/files")}
        for path, file in listed.items():
            sent = load.files.get((payload, path))
            if sent is None or file["sha256"] not in sent.allowed or sent.sizes[file["sha256"]] != file["size"]:
                faults.append(f"{payload}/{path} is listed with {file['size']} bytes, {file['sha256']}")
        for (owner, path), sent in load.files.items():
            if owner == payload and path not in listed and None not in sent.allowed:
                faults.append(f"{payload}/{path} was acknowledged and is not listed")
    for payload, path in load.files:
        await load.look(payload, path)
    return faults


# --- what is left on the host ---


#: Folders in which nothing stays, and names that nothing has for long.
_EMPTY = ("objects/tmp", "agent/work", "agent/journal", "runtime/runs", "runtime/trash", "docker/runs", "docker/trash")
_TEMPORARY = ("*.tmp", "*.part", "*.draft", "started.*")


def leftovers(data: Path) -> Iterable[str]:
    """Yield what lies about in the folder of a host or of the whole."""
    for folder in _EMPTY:
        yield from (f"left in {folder}: {path.name}" for path in (data / folder).glob("*"))
    for pattern in _TEMPORARY:
        yield from (f"left: {path}" for path in data.rglob(pattern) if "nats" not in path.parts)


def log_is_clean(logs: str) -> Faults:
    """Nothing went wrong that nobody had thought of: no line of level `error`, none that is no log line."""
    return [
        line[:2000]
        for line in logs.splitlines()
        if not line.startswith("{") or json.loads(line).get("level") == "error"
    ]
