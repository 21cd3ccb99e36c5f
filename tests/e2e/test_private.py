"""Nothing of a patient leaves a payload: not by a log at the default level, a span, a metric or a webhook.

A series whose names, ids, paths and contents are marked goes every way that a job may go; then all of these are
searched.
"""

import asyncio
import contextlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from gurney.testing.collector import Collector
from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.test_handlers import Listener, handler, listening

pytestmark = [pytest.mark.slow, pytest.mark.embedded]

#: In every name, id, path and content of the payload, and in whatever the application writes. Whichever case or form.
MARK = "ZZMARKZZ"
NAME, PATIENT = f"{MARK}^Erika", f"ID-{MARK}-1"
PATHS = (f"{MARK}/Mustermann^Erika_{MARK}.dcm", f"study-{MARK}/0001.dcm")

#: Writes results and lines of log, and metadata, that are full of the patient; then ends as it is told.
SCRIPT = f"""
cat "$HOLOSCAN_INPUT_PATH/{PATHS[0]}" | tail -c 40
echo "{NAME} {PATIENT}"; echo "{NAME}" >&2
mkdir -p "$HOLOSCAN_OUTPUT_PATH/{MARK}"
echo "{NAME}" > "$HOLOSCAN_OUTPUT_PATH/{MARK}/{MARK}.txt"
"""
ENDS = {
    "succeeds": "exit 0",
    "fails": "exit 3",
    "is-rejected": f'ln -s /etc/{MARK} "$HOLOSCAN_OUTPUT_PATH/{MARK}.lnk"',
    "is-late": "sleep 60",
    "crashes": "kill -SEGV $$",
}


def element(tag: tuple[int, int], vr: bytes, value: str) -> bytes:
    raw = value.encode() + b" " * (len(value) % 2)
    return struct.pack("<HH2sH", *tag, vr, len(raw)) + raw


def dicom() -> bytes:
    """Return a file of DICOM (PS3.10, explicit little endian) that names a patient."""
    meta = element((2, 16), b"UI", "1.2.840.10008.1.2.1")
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
    body = element((8, 96), b"CS", "CT") + element((16, 16), b"PN", NAME) + element((16, 32), b"LO", PATIENT)
    return bytes(128) + b"DICM" + length + meta + body


def series(script: str) -> dict[str, bytes]:
    """Return a payload: the files of a patient, and what is done with them."""
    return {**dict.fromkeys(PATHS, dicom()), "run.sh": script.encode()}


@dataclass
class House:
    """A server and all that it lets out."""

    server: EmbeddedProcess
    collector: Collector

    def told(self) -> dict[str, bytes]:
        """Return what is outside of the payload: logs and spans."""
        files = [self.server.log, *(self.server.data / "nats").glob("*.log")]
        return {file.name: file.read_bytes() for file in files} | {"spans": b"".join(self.collector.bodies)}


@pytest.fixture
def house(tmp_path: Path, maps: Path) -> Iterator[House]:
    """A server of its own, at the default level, whose spans are kept."""
    with Collector() as collector:
        environment = {
            **ENVIRONMENT,
            "GURNEY_OTLP_ENDPOINT": collector.endpoint,
            "GURNEY_TRANSFER_PATIENCE": "0.5",
            "GURNEY_ATTEMPTS": "1",
        }
        with EmbeddedProcess(tmp_path / "data", maps, environment) as server:
            yield House(server, collector)


async def run_all(api: Api, house: House) -> list[Json]:
    """Let jobs on the series end in every way, and break what requests can."""
    shell = await work.register(api, "shell")
    ended = []
    for way, end in ENDS.items():
        job = await work.submit(api, shell["id"], series(f"{SCRIPT}\n{end}\n"), timeout_s=2 if way == "is-late" else 30)
        ended.append(await work.ended(api, job["id"]))
    ended += [await damaged(api, house, shell, how) for how in ("gone", "changed")]
    canceled = await work.submit(api, shell["id"], series(f"{SCRIPT}\nsleep 60"))
    await work.until(api, canceled["id"], lambda found: found["state"] == "running")
    await api.post(f"/v1/jobs/{canceled['id']}/cancel")
    ended.append(await work.ended(api, canceled["id"]))
    await look_at(api, ended[0])
    await refused(api, ended[0])
    return ended


async def damaged(api: Api, house: House, shell: Json, how: str) -> Json:
    """Return the end of a job whose input is no longer in the store as it was, after it was asked for."""
    before = set((house.server.data / "objects").rglob("*"))
    payload = await work.payload(api, series("true"))
    for path in set((house.server.data / "objects").rglob("*")) - before:
        if path.is_file() and how == "gone":
            path.unlink()
        elif path.is_file():
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    for part in (f"files/{PATHS[0]}", "archive"):
        with contextlib.suppress(aiohttp.ClientError):  # the connection breaks where the answer has begun
            await api.get(f"/v1/payloads/{payload}/{part}")
    job = (await api.post("/v1/jobs", {"map": shell["id"], "payload": payload})).must(201).json
    return await work.ended(api, job["id"])


async def look_at(api: Api, job: Json) -> None:
    """Read what there is of a job, by every way."""
    for path in ("logs", "story", "results", f"results/{MARK}/{MARK}.txt"):
        (await api.get(f"/v1/jobs/{job['id']}/{path}")).must(200)
    (await api.get(f"/v1/payloads/{job['payload']}/files?prefix={MARK}")).must(200)
    (await api.get(f"/v1/payloads/{job['payload']}/files/{PATHS[0]}")).must(200)
    (await api.put(f"/v1/payloads/{job['payload']}/name", {"name": f"{MARK} series"})).must(200)
    (await api.get(f"/v1/payloads?name={MARK}%20series")).must(200)


async def refused(api: Api, job: Json) -> None:
    """Make requests that fail, each with the mark where a log or a span might take it from."""
    payload = f"/v1/payloads/{job['payload']}"
    answers = [
        await api.get(f"{payload}/files/{MARK}/none.dcm"),
        await api.put(f"{payload}/files/../{MARK}.dcm", b"x"),
        await api.put(f"{payload}/files/{MARK}/a%00b", b"x"),
        await api.delete(f"{payload}/files/{MARK}/none.dcm"),
        await api.get(f"/v1/jobs/job_{MARK}"),
        await api.get(f"/v1/jobs/{job['id']}/results/{MARK}/none.txt"),
        await api.get(f"/v1/{MARK}"),
        await api.call(f"{MARK}", "/v1/jobs"),
        await api.get(f"/v1/jobs?{MARK}=1"),
        await api.post("/v1/payloads", {"name": f"job_{MARK}"}),
        await api.post("/v1/payloads", {"name": f"{MARK} series"}),
        await api.post("/v1/jobs", {"map": MARK, "payload": job["payload"]}),
        await api.post("/v1/jobs", {"map": MARK, "payload": MARK, "timeout_s": MARK}),
        await api.post("/v1/payloads", data=f"PK{MARK}".encode(), headers={"Content-Type": "application/zip"}),
        await api.post("/v1/maps", {"urn": f"urn:gurney:dir:{MARK}"}),
    ]
    assert [answer.status for answer in answers if answer.status < 400] == [202]
    await work.settled(api, answers[-1].json["id"])


async def bodies(listener: Listener, count: int) -> bytes:
    return b"".join(json.dumps(headers).encode() + body for headers, body in await listener.told(count))


async def test_nothing_of_a_patient_is_told(house: House) -> None:
    """Whatever happens to a job, no log, span, metric or webhook holds a name, an id or a path of its payload."""
    async with listening() as listener, Api(house.server.url, house.server.token) as api:
        await handler(api, listener)
        ended = await run_all(api, house)
        assert {job["reason"] and job["reason"]["code"] for job in ended} == {
            None,
            "exit_nonzero",
            "output_rejected",
            "timeout",
            "input_unavailable",
            "canceled",
        }
        told = {"webhooks": await bodies(listener, len(ended)), "metrics": (await api.get("/metrics")).must(200).body}
    await asyncio.to_thread(house.server.stop)
    told |= house.told()
    assert all(told.values()), {name: len(text) for name, text in told.items()}
    found = {
        name: [line for line in text.splitlines() if MARK.lower().encode() in line.lower()]
        for name, text in told.items()
    }
    assert not any(found.values()), found
    about = [line for line in map(json.loads, told["data.log"].splitlines()) if line.get("job") == ended[1]["id"]]
    assert any(line["event"] == "job ended" and line["run"] and line["trace"] for line in about)
