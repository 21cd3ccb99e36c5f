"""Jobs: from submission to deletion, as a client follows them."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator

import pytest

from gurney.client.http import ServerEvent
from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api, Json

COPY = 'cat "$HOLOSCAN_INPUT_PATH/scan" > "$HOLOSCAN_OUTPUT_PATH/copy"'


@pytest.mark.req("MAS-30")
async def test_create(api: Api) -> None:
    """A job is made of a MAP and a payload, each by id or by name, and has an id of its own."""
    made = await work.register(api, "noop", name="nothing")
    data = await work.payload(api, name="empty")
    first = (await api.post("/v1/jobs", {"map": "nothing", "payload": "empty"})).must(201)
    second = (await api.post("/v1/jobs", {"map": made["id"], "payload": data})).must(201)
    assert first.json["id"] != second.json["id"]
    assert first.headers["Location"] == f"/v1/jobs/{first.json['id']}"
    for each in (first, second):
        assert (each.json["map"]["id"], each.json["payload"]) == (made["id"], data)
        assert (await work.ended(api, each.json["id"]))["state"] == "succeeded"
    (await api.post("/v1/jobs", {"map": "nothing", "payload": "no such payload"}, case="payload")).must(404)


@pytest.mark.req("MAS-31")
async def test_association(api: Api) -> None:
    """Which payload went with which MAP is known from the request on, and found both ways."""
    first, second = await work.register(api, "noop"), await work.register(api, "noop")
    one, two = await work.payload(api), await work.payload(api)
    jobs = {}
    for made, data in ((first, one), (first, two), (second, one)):
        jobs[made["id"], data] = (await api.post("/v1/jobs", {"map": made["id"], "payload": data})).must(201).json["id"]
    of_map = await api.all(f"/v1/jobs?map={first['id']}")
    assert {each["payload"] for each in of_map} == {one, two}
    of_payload = await api.all(f"/v1/jobs?payload={one}")
    assert {each["map"]["id"] for each in of_payload} == {first["id"], second["id"]}
    both = await api.all(f"/v1/jobs?payload={one}&map={second['id']}")
    assert [each["id"] for each in both] == [jobs[second["id"], one]]


@pytest.mark.req("MAS-38", "MAS-39", "MAS-41")
async def test_a_whole_life(api: Api, server: EmbeddedProcess) -> None:
    """Input goes in, the results come out file by file and whole, and every change of state is kept with its time."""
    made = await work.register(api, "shell")
    script = f'echo starting; {COPY}; mkdir "$HOLOSCAN_OUTPUT_PATH/sub"; echo 1 > "$HOLOSCAN_OUTPUT_PATH/sub/n"'
    job = await work.submit(api, made["id"], {"run.sh": script, "scan": b"\0\1voxels"}, name="first", labels={"a": "b"})
    assert (job["state"], job["attempt"], job["started_at"]) == ("requested", 1, None)
    done = await work.ended(api, job["id"])
    assert (done["state"], done["exit_code"], done["reason"]) == ("succeeded", 0, None)
    assert done["created_at"] <= done["scheduled_at"] <= done["started_at"] <= done["stopped_at"]
    assert done["finalized_at"] is None
    assert {name for name, seconds in done["timings"].items() if seconds is not None} >= {"queued", "running", "other"}
    files = await work.results(api, done)
    assert files.keys() == {"copy", "sub/n"}
    assert await work.result(api, done, "copy") == b"\0\1voxels"
    (await api.get(f"/v1/jobs/{job['id']}/results/nothing", case="unknown path")).must(404)
    whole = (await api.get(f"/v1/jobs/{job['id']}/results")).must(200)
    with zipfile.ZipFile(io.BytesIO(whole.body)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"copy": b"\0\1voxels", "sub/n": b"1\n"}
    told = (await api.get(f"/v1/jobs/{job['id']}/story")).must(200).json["items"]
    assert [item["event"] for item in told] == ["requested", "scheduled", "started", "succeeded"]
    assert [item["at"] for item in told] == sorted(item["at"] for item in told)
    assert all(item["cause"] for item in told)
    await work.nothing_left(server, job["id"])


async def test_live_job_holds_things(api: Api) -> None:
    """While a job lives its input cannot change, its end is not there, and it can be neither finalized nor deleted."""
    job = await work.begin(api, "sleep 30")
    path, data = f"/v1/jobs/{job['id']}", f"/v1/payloads/{job['payload']}"
    (await api.post(f"{path}/finalize", case="live")).must(409, "job_live")
    (await api.delete(path, case="live")).must(409, "job_live")
    (await api.get(f"{path}/results", case="live")).must(409, "job_not_finished")
    (await api.get(f"{path}/results/x", case="live")).must(409, "job_not_finished")
    (await api.delete(data, case="held")).must(409, "payload_in_use")
    (await api.delete(f"{data}/files/run.sh", case="held")).must(409, "payload_in_use")
    refused = (await api.put(f"{data}/files/new", b"x", case="held")).must(409, "payload_in_use")
    assert job["id"] in refused.json["detail"]
    assert (await api.get(f"{data}/files/run.sh")).must(200).body == b"sleep 30"
    (await api.post(f"{path}/cancel")).must(202)
    await work.ended(api, job["id"])


@pytest.mark.req("MAS-34")
async def test_cancel(api: Api, server: EmbeddedProcess) -> None:
    """A canceled job ends soon, says so, and leaves no process; a second cancel is no error, one after success is."""
    job = await work.begin(api, "echo begun; sleep 30; echo never")
    assert (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(202).json["cancel_requested_at"]
    done = await work.ended(api, job["id"])
    assert (done["state"], done["reason"]["code"]) == ("canceled", "canceled")
    assert "never" not in await work.log(api, done)
    await work.nothing_left(server, job["id"])
    (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(200)
    done = await work.shell(api, "true")
    (await api.post(f"/v1/jobs/{done['id']}/cancel", case="succeeded")).must(409, "job_terminal")


async def test_cancel_while_it_waits(api: Api) -> None:
    """A job that is canceled before its placement never starts."""
    first = await work.begin(api, "sleep 30", "half")
    second = await work.submit(api, first["map"]["id"], {"run.sh": "true"})
    waiting = await work.until(api, second["id"], lambda found: found["waiting"] is not None)
    assert waiting["waiting"]["position"] >= 1
    assert waiting["waiting"]["reasons"][0]["code"] == "cpu_busy"
    (await api.post(f"/v1/jobs/{second['id']}/cancel")).must(202)
    done = await work.ended(api, second["id"])
    assert (done["state"], done["started_at"]) == ("canceled", None)
    (await api.post(f"/v1/jobs/{first['id']}/cancel")).must(202)
    await work.ended(api, first["id"])


@pytest.mark.req("MAS-36")
async def test_finalize(api: Api) -> None:
    """Finalizing lets go of the input, whose contents go with its last claim; results stay; repeating is no error."""
    made = await work.register(api, "shell")
    job = await work.submit(api, made["id"], {"run.sh": COPY, "scan": b"x"})
    done = await work.ended(api, job["id"])
    first = (await api.post(f"/v1/jobs/{job['id']}/finalize")).must(200).json
    assert first["finalized_at"] is not None
    again = (await api.post(f"/v1/jobs/{job['id']}/finalize")).must(200).json
    assert again["finalized_at"] == first["finalized_at"]
    (await api.get(f"/v1/payloads/{job['payload']}")).must(404)
    assert await work.result(api, done, "copy") == b"x"


async def test_finalize_of_a_kept_input(api: Api) -> None:
    """A payload that is to be kept, and one that another job holds, stay with all that they have."""
    made = await work.register(api, "noop")
    kept = await work.payload(api, {"scan": b"x"}, keep=True)
    shared = await work.payload(api, {"scan": b"x"})
    jobs = []
    for data in (kept, shared, shared):
        job = (await api.post("/v1/jobs", {"map": made["id"], "payload": data})).must(201).json
        jobs.append((await work.ended(api, job["id"]))["id"])
    for job in jobs[:2]:
        (await api.post(f"/v1/jobs/{job}/finalize")).must(200)
    for data in (kept, shared):
        assert (await api.get(f"/v1/payloads/{data}/files/scan")).must(200).body == b"x"
    (await api.post(f"/v1/jobs/{jobs[2]}/finalize")).must(200)
    (await api.get(f"/v1/payloads/{shared}")).must(404)


@pytest.mark.req("MAS-35")
async def test_delete(api: Api) -> None:
    """A deleted job takes record, log and results with it, unless another job uses the results; the input stays."""
    made = await work.register(api, "shell")
    job = await work.submit(api, made["id"], {"run.sh": f"echo hello; {COPY}", "scan": b"x"})
    done = await work.ended(api, job["id"])
    asked = {"map": made["id"], "payload": done["results"]}
    user = await work.ended(api, (await api.post("/v1/jobs", asked)).must(201).json["id"])
    (await api.delete(f"/v1/jobs/{job['id']}")).must(204)
    for part in ("", "/logs", "/results", "/results/copy", "/story", "/events"):
        (await api.get(f"/v1/jobs/{job['id']}{part}", case="deleted")).must(404)
    (await api.delete(f"/v1/jobs/{job['id']}", case="deleted")).must(404)
    assert (await api.get(f"/v1/payloads/{done['results']}/files/copy")).must(200).body == b"x"
    assert (await api.get(f"/v1/payloads/{job['payload']}/files/scan")).must(200).body == b"x"
    (await api.post(f"/v1/jobs/{user['id']}/finalize")).must(200)
    (await api.get(f"/v1/payloads/{done['results']}", case="last claim gone")).must(404)
    alone = await work.ended(api, (await work.submit(api, made["id"], {"run.sh": COPY, "scan": b"y"}))["id"])
    (await api.delete(f"/v1/jobs/{alone['id']}")).must(204)
    (await api.get(f"/v1/payloads/{alone['results']}", case="job deleted")).must(404)


@pytest.mark.req("MAS-37")
async def test_list(api: Api) -> None:
    """Jobs are listed newest first, page by page, and all filters combine."""
    noop, shell = await work.register(api, "noop", name="noop"), await work.register(api, "shell")
    data = await work.payload(api, {"run.sh": "exit 3"}, name="data")
    jobs = []
    for number in range(6):
        asked = {"map": (noop, shell)[number % 2]["id"], "payload": data, "labels": {"n": str(number), "all": "yes"}}
        jobs.append(await work.ended(api, (await api.post("/v1/jobs", asked)).must(201).json["id"]))
    ids = [job["id"] for job in jobs]

    async def listed(query: str) -> list[str]:
        return [job["id"] for job in await api.all(f"/v1/jobs?{query}")]

    assert await listed("limit=2") == ids[::-1]
    assert await listed("state=failed") == [ids[5], ids[3], ids[1]]
    assert await listed("map=noop&limit=1") == [ids[4], ids[2], ids[0]]
    assert await listed(f"map={shell['id']}&state=succeeded") == []
    assert await listed("payload=data&label=all%3Dyes&label=n%3D4") == [ids[4]]
    mid = jobs[2]["created_at"]
    assert set(ids[3:]) <= set(await listed(f"created_after={mid}")) <= set(ids[2:])
    assert set(ids[:2]) <= set(await listed(f"created_before={mid}")) <= set(ids[:3])
    end = jobs[2]["stopped_at"]
    assert set(ids[3:]) <= set(await listed(f"completed_after={end}")) <= set(ids[2:])
    period = f"completed_after={end}&completed_before={jobs[4]['stopped_at']}"
    both = await listed(f"{period}&state=failed&map={shell['id']}")
    assert both == [ids[3]]
    assert all("log_tail" not in job for job in await api.all("/v1/jobs"))


async def test_wait(api: Api) -> None:
    """`Prefer: wait` answers at the end, not before and not only when the time is over."""
    job = await work.begin(api, "sleep 0.5; exit 3")
    soon = (await api.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=0"})).must(200)
    assert soon.json["state"] == "running"
    async with asyncio.timeout(20):
        late = (await api.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "respond-async, wait=60"})).must(200)
    assert (late.json["state"], late.json["exit_code"]) == ("failed", 3)
    assert late.headers["Preference-Applied"] == "wait=60"


async def test_repeated_submission(api: Api) -> None:
    """The same Idempotency-Key makes one job and one claim, even at the same time; another body is refused."""
    made = await work.register(api, "noop")
    asked = {"map": made["id"], "payload": await work.payload(api)}
    key = {"Idempotency-Key": "once"}
    answers = await asyncio.gather(*(api.post("/v1/jobs", asked, headers=key) for _ in range(5)))
    assert len({answer.must(201).json["id"] for answer in answers}) == 1
    assert len(await api.all("/v1/jobs")) == 1
    assert (await api.get(f"/v1/payloads/{asked['payload']}")).json["claims"] == 1
    (await api.post("/v1/jobs", asked | {"name": "x"}, headers=key)).must(422, "idempotency_key_reused")


async def test_dry_run(api: Api) -> None:
    """A dry run says what would be accepted, and leaves neither job nor claim."""
    made = await work.register(api, "noop")
    asked = {"map": made["id"], "payload": await work.payload(api)}
    tried = (await api.post("/v1/jobs?dry_run=true", asked)).must(200).json
    assert (tried["id"], tried["map"]["id"], tried["state"]) == (None, made["id"], "requested")
    (await api.post("/v1/jobs?dry_run=true", asked | {"resources": {"cpu": 1000}})).must(422, "infeasible")
    assert await api.all("/v1/jobs") == []
    assert (await api.get(f"/v1/payloads/{asked['payload']}")).json["claims"] == 0


async def test_retries_of_the_application(api: Api) -> None:
    """An application that fails is started again as often as the job asks, each attempt with a log of its own."""
    job = await work.shell(api, 'echo "attempt $GURNEY_ATTEMPT"; [ "$GURNEY_ATTEMPT" = 2 ]', retries=3)
    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    assert [entry["attempt"] for entry in job["logs"]] == [1, 2]
    for attempt in (1, 2):
        found = (await api.get(f"/v1/jobs/{job['id']}/logs?attempt={attempt}")).must(200)
        assert found.body == f"attempt {attempt}\n".encode()
    (await api.get(f"/v1/jobs/{job['id']}/logs?attempt=3", case="no such attempt")).must(404)
    told = [item["event"] for item in (await api.get(f"/v1/jobs/{job['id']}/story")).json["items"]]
    assert told.count("started") == 2
    assert "retrying" in told


async def test_logs_live_and_kept(api: Api) -> None:
    """A log is followed as it is written, and kept whole afterwards."""
    job = await work.begin(api, "echo one; sleep 0.3; echo two >&2; sleep 0.3; echo three")
    text, kinds = "", []
    async with asyncio.timeout(30), api.events(f"/v1/jobs/{job['id']}/logs?follow=true") as events:
        async for event in events:
            kinds.append(event.type)
            text += event.data.get("text", "")
    assert text == "one\ntwo\nthree\n"
    assert kinds[-1] == "end"
    assert kinds.count("log") >= 2
    kept = (await api.get(f"/v1/jobs/{job['id']}/logs")).must(200)
    assert kept.headers["Content-Type"].startswith("text/plain")
    assert kept.body.decode() == text
    again = [event.data["text"] async for event in _followed(api, job) if event.type == "log"]
    assert "".join(again) == text
    done = (await api.get(f"/v1/jobs/{job['id']}")).json
    assert done["log_tail"] == ["one", "two", "three"]
    assert done["logs"][0]["bytes"] == len(text)


async def _followed(api: Api, job: Json) -> AsyncIterator[ServerEvent]:
    async with api.events(f"/v1/jobs/{job['id']}/logs?follow=true") as events:
        async for event in events:
            yield event


async def test_metadata(api: Api) -> None:
    """The object in the output's metadata.json is shown with the job, and stays a result file."""
    job = await work.shell(api, """echo '{"volume_ml": 1234.5}' > "$HOLOSCAN_OUTPUT_PATH/metadata.json" """)
    assert job["metadata"] == {"volume_ml": 1234.5}
    assert json.loads(await work.result(api, job, "metadata.json")) == {"volume_ml": 1234.5}
    assert "metadata" not in (await api.all("/v1/jobs"))[0]


async def test_use(api: Api) -> None:
    """What a run used is told with its end: processor time, wall time, bytes in and out."""
    script = 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; printf 12345 > "$HOLOSCAN_OUTPUT_PATH/f"'
    job = await work.shell(api, script)
    used = job["usage"]
    assert (used["bytes_in"], used["bytes_out"]) == (len(script), 5)
    assert 0 < used["cpu_s"] <= 2 * used["wall_s"]
    assert used["wall_s"] <= job["timings"]["running"] * 1.01
    assert used.keys() >= {"peak_memory"}


async def test_exactly_the_files_of_the_payload(api: Api) -> None:
    """A run sees the payload's files and empty folders, byte for byte, and nothing else."""
    script = 'cd "$HOLOSCAN_INPUT_PATH"; find . | LC_ALL=C sort; cat sub/f'
    made = await work.register(api, "shell")
    job = await work.submit(api, made["id"], {"run.sh": script, "sub/f": b"bytes\n", "empty/": b""})
    done = await work.ended(api, job["id"])
    lines = (await work.log(api, done)).splitlines()
    assert lines == [".", "./empty", "./run.sh", "./sub", "./sub/f", "bytes"]
