"""Room: what is counted, what waits, what is refused."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api, Json

#: An application that tells by its own clock when it began and when it ended.
CLOCKED = """
read -r began _ < /proc/uptime; echo "$began" > "$HOLOSCAN_OUTPUT_PATH/began"
{work}
read -r ended _ < /proc/uptime; echo "$ended" > "$HOLOSCAN_OUTPUT_PATH/ended"
"""


async def spans(api: Api, jobs: list[Json]) -> list[tuple[float, float]]:
    """Return when the runs of jobs began and ended, by their own clocks, in the order of their beginnings."""
    found = []
    for job in jobs:
        done = await work.ended(api, job["id"])
        assert done["state"] == "succeeded"
        times = [float(await work.result(api, done, name)) for name in ("began", "ended")]
        found.append((times[0], times[1]))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "resources", [{"cpu": 1.01}, {"memory": "over half"}, {"cpu": 1.5, "memory": "over half"}], ids=str
)
async def test_two_over_half(api: Api, resources: dict[str, object]) -> None:
    """Two jobs over half of the machine never overlap by their own clocks, whichever resource it is."""
    if "memory" in resources:
        (node,) = (await api.get("/v1/nodes")).items
        resources = resources | {"memory": node["capacity"]["memory"] // 2 + 1}
    made = await work.register(api, "shell")
    script = CLOCKED.format(work="sleep 0.2")
    jobs = [await work.submit(api, made["id"], {"run.sh": script}, resources=resources) for _ in range(3)]
    times = await spans(api, jobs)
    assert all(before[1] <= after[0] for before, after in pairwise(times))


@pytest.mark.req("MAS-02")
async def test_several_at_once(api: Api, tmp_path: Path) -> None:
    """Jobs that fit beside each other run at the same time, as many as there is room for and no more."""
    made = await work.register(api, "shell")
    meeting = f'touch {tmp_path}/"$GURNEY_JOB_ID"; until [ "$(ls {tmp_path} | wc -l)" -ge 4 ]; do sleep 0.02; done'
    script = CLOCKED.format(work=f"{meeting}; sleep 0.2")
    jobs = [await work.submit(api, made["id"], {"run.sh": script}, resources={"cpu": 0.5}) for _ in range(6)]
    times = await spans(api, jobs)
    assert max(sum(began <= at < ended for began, ended in times) for at, _ in times) == 4


async def test_what_would_become_of_a_job(api: Api, admin: Api) -> None:
    """A dry run names the node where the job would run now; or its place, why it would wait, and until when."""
    await work.register(api, "shell")  # whose agent is there from then on
    (node,) = (await api.get("/v1/nodes")).items
    whole = {"cpu": node["capacity"]["cpu"]}
    running = await work.begin(api, "sleep 60", resources=whole)
    asked = {"map": running["map"]["id"], "payload": running["payload"], "resources": whole}
    waits = (await api.post("/v1/jobs?dry_run=true", asked)).must(200).json
    assert (waits["id"], waits["node"], waits["waiting"]["position"]) == (None, None, 1)
    assert [each["code"] for each in waits["waiting"]["reasons"]] == ["cpu_busy"]
    assert waits["waiting"]["estimated_start"] > running["created_at"]
    job = (await api.post("/v1/jobs", asked)).must(201).json
    told = (await api.get(f"/v1/jobs/{job['id']}")).must(200).json["waiting"]
    assert (told["position"], [each["code"] for each in told["reasons"]]) == (1, ["cpu_busy"])
    assert told["estimated_start"] > running["created_at"]
    for blocker in (waits["waiting"]["blocker"], told["blocker"]):
        assert (blocker["node"], blocker["runs"], blocker["jobs"], blocker["run_ids"]) == (node["id"], 1, 0, [])
    named = (await admin.get(f"/v1/jobs/{job['id']}")).must(200).json["waiting"]["blocker"]
    assert named["run_ids"] == [f"{running['id']}-1"], "which run it is, administrators are told"
    (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(202)
    (await api.post(f"/v1/jobs/{running['id']}/cancel")).must(202)
    await work.ended(api, running["id"])
    runs = (await api.post("/v1/jobs?dry_run=true", asked)).must(200).json
    assert (runs["node"], runs["waiting"]) == (node["id"], None)


@pytest.mark.embedded
async def test_a_quota(tmp_path: Path, maps: Path) -> None:
    """A project gets no more than its quota: what exceeds it waits for that, and is refused where it always would."""
    server = EmbeddedProcess(tmp_path / "data", maps, {"GURNEY_QUOTAS": '{"default": {"cpu": 0.5}}'})
    await asyncio.to_thread(server.start)
    try:
        async with Api(server.url, server.token) as api:
            first = await work.begin(api, "sleep 60", resources={"cpu": 0.5})
            second = await work.submit(api, first["map"]["id"], {"run.sh": "true"}, resources={"cpu": 0.1})
            told = await work.until(api, second["id"], lambda job: bool(job["waiting"]))
            assert [each["code"] for each in told["waiting"]["reasons"]] == ["quota"]
            asked = {"map": first["map"]["id"], "payload": first["payload"], "resources": {"cpu": 0.6}}
            (await api.post("/v1/jobs", asked, case="over its quota")).must(422, "infeasible")
            (await api.post(f"/v1/jobs/{first['id']}/cancel")).must(202)
            assert (await work.ended(api, second["id"]))["state"] == "succeeded"
    finally:
        await asyncio.to_thread(server.stop)


@pytest.mark.req("MAS-33")
async def test_reject(api: Api) -> None:
    """Without room a job that does not wait is refused with 503 that names what is short, and leaves nothing."""
    running = await work.begin(api, "sleep 30", "half")
    data = await work.payload(api, {"run.sh": "true"})
    asked = {"map": running["map"]["id"], "payload": data}
    refused = (await api.post("/v1/jobs", asked | {"admission": "reject"}, case="no room")).must(503, "no_room")
    assert "asks 1.5 cores, 0.5 cores are free" in refused.json["detail"]
    assert [job["id"] for job in await api.all("/v1/jobs")] == [running["id"]]
    assert (await api.get(f"/v1/payloads/{data}")).json["claims"] == 0
    assert (await api.delete(f"/v1/payloads/{data}")).must(204)
    waiting = await work.submit(api, running["map"]["id"], {"run.sh": "true"})
    found = await work.until(api, waiting["id"], lambda job: job["waiting"] is not None)
    assert found["waiting"]["reasons"][0]["code"] == "cpu_busy"
    for admission in ("queue", "reject"):
        asked = {"map": running["map"]["id"], "payload": waiting["payload"], "resources": {"cpu": 1000}}
        answer = (await api.post("/v1/jobs", asked | {"admission": admission}, case="infeasible")).must(
            422, "infeasible"
        )
        assert answer.fields == {"resources.cpu"}
    (await api.post(f"/v1/jobs/{running['id']}/cancel")).must(202)
    assert (await work.ended(api, waiting["id"]))["state"] == "succeeded"


@pytest.mark.req("MAS-33")
async def test_fifty_at_once(api: Api) -> None:
    """Of fifty that do not wait exactly as many are accepted as fit; the others say what is short and leave nothing."""
    made = await work.register(api, "shell")
    data = await work.payload(api, {"run.sh": "sleep 60"})
    asked = {"map": made["id"], "payload": data, "admission": "reject", "resources": {"cpu": 0.3, "memory": 2**24}}
    answers = await asyncio.gather(*(api.post("/v1/jobs", asked, case="no room") for _ in range(50)))
    accepted = [answer.json["id"] for answer in answers if answer.status == 201]
    refused = [answer.must(503, "no_room") for answer in answers if answer.status != 201]
    assert (len(accepted), len(refused)) == (6, 44)
    assert all("asks 0.3 cores, 0.2 cores are free" in answer.json["detail"] for answer in refused)
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert {job["id"] for job in await api.all("/v1/jobs")} == set(accepted)
    assert (await api.get(f"/v1/payloads/{data}")).json["claims"] == len(accepted)
    (node,) = (await api.get("/v1/nodes")).items
    assert node["used"]["cpu"] == pytest.approx(0.3 * len(accepted))
    for job in accepted:
        (await api.post(f"/v1/jobs/{job}/cancel")).must(202)
    for job in accepted:
        await work.ended(api, job)
    assert (await api.get(f"/v1/payloads/{data}")).json["held_by"] == []


async def test_reject_with_room(api: Api) -> None:
    """With room a job that does not wait runs, and its room is free afterwards."""
    made = await work.register(api, "half")
    for _ in range(3):
        job = await work.submit(api, made["id"], {"run.sh": "true"}, admission="reject")
        assert (job["admission"], (await work.ended(api, job["id"]))["state"]) == ("reject", "succeeded")


@pytest.mark.slow
@pytest.mark.req("MAS-33")
async def test_default_of_the_deployment(maps: Path, tmp_path: Path) -> None:
    """The setting of the deployment is what holds for a job that does not say how it is admitted."""
    environment = {"GURNEY_ADMISSION": "reject", "GURNEY_CPU": "2"}
    server = EmbeddedProcess(tmp_path / "data", maps, environment)
    await asyncio.to_thread(server.start)
    try:
        async with Api(server.url, server.token) as api:
            running = await work.begin(api, "sleep 30", "half")
            asked = {"map": running["map"]["id"], "payload": running["payload"]}
            (await api.post("/v1/jobs", asked, case="no room")).must(503, "no_room")
            waiting = (await api.post("/v1/jobs", asked | {"admission": "queue"})).must(201).json
            for job in (waiting, running):
                (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(202)
                await work.ended(api, job["id"])
    finally:
        await asyncio.to_thread(server.stop)


async def test_infeasible(api: Api) -> None:
    """What no node could ever hold is refused whatever the admission, and leaves no claim."""
    made = await work.register(api, "giant")
    data = await work.payload(api)
    for admission in ("queue", "reject", None):
        asked = {"map": made["id"], "payload": data, "admission": admission}
        answer = (await api.post("/v1/jobs", asked, case="infeasible")).must(422, "infeasible")
        assert answer.fields == {"resources.cpu"}
    for resources, field in (({"cpu": 1, "memory": 2**50}, "memory"), ({"cpu": 1, "gpus": 8}, "gpus")):
        answer = (await api.post("/v1/jobs", asked | {"resources": resources})).must(422, "infeasible")
        assert f"resources.{field}" in answer.fields
    assert (await api.get(f"/v1/payloads/{data}")).json["claims"] == 0
    assert await api.all("/v1/jobs") == []


async def test_priority(api: Api) -> None:
    """Of the jobs that wait the one of higher priority comes first."""
    running = await work.begin(api, "sleep 0.5", "half")
    order = []
    for priority in ("lower", "normal", "higher"):
        made = running["map"]["id"]
        script = CLOCKED.format(work="sleep 0.1")
        order.append(await work.submit(api, made, {"run.sh": script}, priority=priority))
    began = {}
    for job in order:
        done = await work.ended(api, job["id"])
        began[done["priority"]] = float(await work.result(api, done, "began"))
    assert sorted(began, key=began.__getitem__) == ["higher", "normal", "lower"]


async def test_node_shows_its_room(api: Api) -> None:
    """What a running job holds is used on its node, and free again when it has ended."""
    job = await work.begin(api, "sleep 30", "half")
    (node,) = (await api.get("/v1/nodes")).must(200).items
    assert (node["id"], node["state"]) == (job["node"], "ready")
    assert node["used"]["cpu"] >= 1.5
    found = (await api.get(f"/v1/nodes/{node['id']}")).must(200).json
    assert found["free"]["cpu"] == pytest.approx(found["capacity"]["cpu"] - found["used"]["cpu"])
    (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(202)
    await work.ended(api, job["id"])
    assert (await api.get(f"/v1/nodes/{node['id']}")).json["used"]["cpu"] == 0
