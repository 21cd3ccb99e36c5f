"""What nearly every test does before its own matter: a MAP that is ready, a payload, a job at its end."""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.api import Api, Json
from tests.e2e.servers import Server

#: More than any wait of a test may take, less than the limit of a test.
PATIENCE_S = 60


async def settled(api: Api, ref: str) -> Json:
    """Return a MAP that is no longer `registering`."""
    async with asyncio.timeout(PATIENCE_S):
        while (found := (await api.get(f"/v1/maps/{ref}")).must(200).json)["state"] == "registering":
            await asyncio.sleep(0.01)
    return dict(found)


async def register(api: Api, folder: str, **options: Any) -> Json:
    """Register a folder MAP and return it when its manifests were read."""
    asked = {"urn": f"urn:gurney:dir:{folder}", **options}
    made = (await api.post("/v1/maps", asked)).must(202).json
    return await settled(api, made["id"])


async def payload(api: Api, files: Mapping[str, bytes | str] | None = None, **options: Any) -> str:
    """Make a payload of these files and return its id."""
    made: str = (await api.post("/v1/payloads", options)).must(201).json["id"]
    for path, content in (files or {}).items():
        data = content.encode() if isinstance(content, str) else content
        (await api.put(f"/v1/payloads/{made}/files/{path}", data)).must(201)
    return made


async def submit(api: Api, ref: str, files: Mapping[str, bytes | str] | None = None, **options: Any) -> Json:
    """Submit a job of a MAP on a payload of these files."""
    asked = {"map": ref, "payload": await payload(api, files), **options}
    return dict((await api.post("/v1/jobs", asked)).must(201).json)


async def ended(api: Api, job: str) -> Json:
    """Return a job at its end."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = (await api.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=20"})).must(200).json
            if found["state"] in {"succeeded", "failed", "canceled"}:
                return dict(found)


async def shell(api: Api, script: str, **options: Any) -> Json:
    """Run a shell script as a job, to its end."""
    made = await register(api, "shell")
    return await ended(api, (await submit(api, made["id"], {"run.sh": script}, **options))["id"])


async def begin(api: Api, script: str, ref: str = "shell", **options: Any) -> Json:
    """Submit a shell script as a job and return it once it runs."""
    made = await register(api, ref)
    job = await submit(api, made["id"], {"run.sh": script}, **options)
    return await until(api, job["id"], lambda found: found["state"] == "running")


async def until(api: Api, job: str, holds: Callable[[Json], bool]) -> Json:
    """Return a job once something holds of it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = (await api.get(f"/v1/jobs/{job}")).must(200).json
            if holds(found):
                return dict(found)
            await asyncio.sleep(0.01)


async def results(api: Api, job: Json) -> dict[str, Json]:
    """Return path -> file of a job's results."""
    if job["results"] is None:
        return {}
    return {file["path"]: file for file in await api.all(f"/v1/payloads/{job['results']}/files")}


async def result(api: Api, job: Json, path: str) -> bytes:
    """Return the content of one file of the results."""
    return (await api.get(f"/v1/jobs/{job['id']}/results/{path}")).must(200).body


async def log(api: Api, job: Json) -> str:
    """Return the whole log of a job's last attempt."""
    return (await api.get(f"/v1/jobs/{job['id']}/logs")).must(200).body.decode()


def leftovers(data: Path, job: str) -> list[Path]:
    """Return what a job's runs have left on the host: work, journal, the runtime's folders, processes."""
    places = (
        data / "agent" / "work",
        data / "agent" / "journal",
        data / "runtime" / "runs",
        data / "runtime" / "trash",
        data / "docker" / "runs",
        data / "docker" / "trash",
    )
    left = [path for place in places if place.is_dir() for path in place.iterdir() if path.name.startswith(job)]
    return left + processes(job)


def processes(job: str) -> list[Path]:
    """Return processes that carry the job's id in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if f"GURNEY_JOB_ID={job}".encode() in environment:
            found.append(process)
    return found


async def nothing_left(server: Server, job: str) -> None:
    """Wait until nothing of a job's runs is left on any host: that comes right after the end was told."""
    async with asyncio.timeout(PATIENCE_S):
        for host in server.hosts:
            while await asyncio.to_thread(leftovers, host, job):
                await asyncio.sleep(0.02)


def nats_pid(data: Path) -> int:
    """Return the process id of the nats-server of a data folder."""
    return int(json.loads((data / "nats" / "server.json").read_text())["pid"])


def is_alive(pid: int) -> bool:
    """Tell whether a process is there; one that has ended and that nobody has waited for is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}
