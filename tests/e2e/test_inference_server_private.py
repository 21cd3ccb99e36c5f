"""InferenceServer's clients, against Gurney: what its private API answers."""

import asyncio
from datetime import datetime
from pathlib import Path

import pytest

from gurney import clock
from gurney.client import AsyncClient
from gurney.documents.sqlite import SqliteDocuments
from gurney.store import Store
from services.inference_server.documents import Status, Task, Todo
from services.inference_server.models import Models
from services.inference_server.posting import Posting
from services.inference_server.repository import ALL, TASKS
from services.inference_server.settings import InferenceServerSettings
from services.inference_server.steps import Steps
from services.inference_server.stock import Stock
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.inference_server import (
    ALIVE,
    FAILED,
    NO_MODEL,
    NO_OUTPUT,
    SHELL,
    UNKNOWN,
    InferenceServer,
    Reply,
    form,
    packed,
    waits,
)
from tests.e2e.zips import unpacked

pytestmark = [pytest.mark.timeout(180), pytest.mark.req("INF-11")]

TASK_KEYS = {
    "id",
    "uid",
    "model_human_readable_id",
    "datetime_created",
    "input_zip",
    "output_zip",
    "input_volume_id",
    "output_volume_id",
    "datetime_dispatched",
    "datetime_finished",
    "status",
    "is_deleted",
}
PENDING, LOST, FINISHED, RUNNING = -1, 0, 1, 2
NOBODY = "x" * 43


async def said(inference: InferenceServer, uid: str, status: int) -> Reply:
    return await inference.private("PUT", f"/api/tasks/?uid={uid}&status={status}")


async def job_of(native: Api, task: Json, state: str) -> Json:
    """Return the job of a task once it is in a state."""
    async with asyncio.timeout(work.PATIENCE_S):
        while True:
            for job in await native.all("/v1/jobs?label=inference-server%3Dtask"):
                of_task = job["labels"]["inference-server.id"].startswith(f"task-{task['id']}-")
                if of_task and job["state"] == state:
                    return job
            await asyncio.sleep(0.02)


@pytest.mark.req("INF-02")
async def test_a_task_is_told_as_json(inference: InferenceServer) -> None:
    """Its keys are those of the original, its times come one after another, and no path of a server is in it."""
    model = await inference.model()
    uid = await inference.task(model, packed())
    new = await inference.told(uid)
    assert new.keys() == TASK_KEYS
    assert (new["uid"], new["model_human_readable_id"], new["is_deleted"]) == (uid, model, False)
    assert new["output_zip"] is None
    over = await inference.until(uid, FINISHED)
    times = [over[f"datetime_{each}"] for each in ("created", "dispatched", "finished")]
    assert times == sorted(times)
    assert [datetime.fromisoformat(each).tzinfo for each in times] == [None] * 3
    assert isinstance(over["output_zip"], str)
    assert "/" not in f"{over['input_zip']}{over['output_zip']}{over['input_volume_id']}{over['output_volume_id']}"
    assert over["id"] == new["id"]


@pytest.mark.req("INF-02")
async def test_the_list_has_all_tasks(inference: InferenceServer, native: Api, tmp_path: Path) -> None:
    """Each as it is told alone, the moment its job is over too, and deleted ones."""
    model = await inference.model()
    deleted = await inference.task(model, packed("true"))
    (await inference.public("DELETE", f"/api/tasks/{deleted}")).must(200)
    running = await inference.task(model, packed(waits(tmp_path / "gate")))
    await inference.until(running, RUNNING)
    ended = await inference.task(model, packed("true"))
    async with asyncio.timeout(work.PATIENCE_S):  # natively: who asks the façade for it reminds the façade of it
        while not any(job["state"] == "succeeded" for job in await native.all(f"/v1/jobs?{labelled(model)}")):
            await asyncio.sleep(0.005)
    listed = {each["uid"]: each for each in (await inference.private("GET", "/api/tasks/")).must(200).json}
    assert {uid: listed[uid]["status"] for uid in (running, ended)} == {running: RUNNING, ended: FINISHED}
    assert listed[deleted]["is_deleted"]
    assert listed[running] == await inference.told(running)
    numbers = [each["id"] for each in listed.values()]
    assert numbers == sorted(numbers)


def labelled(model: str) -> str:
    return f"label=inference-server%3Dtask&label=inference-server.model%3D{model}"


@pytest.mark.req("INF-02")
async def test_bytes_come_back_as_they_were_posted(inference: InferenceServer) -> None:
    """The zip of a task and the zip of a model, byte for byte, whatever is in them."""
    content, task = packed("weights"), packed()
    model = await inference.model(archive=content)
    described = (await inference.private("GET", f"/api/models/human_readable_id/{model}")).must(200).json
    for path in (f"/api/models/zips/{described['uid']}", f"/api/models/zips/x?uid={described['uid']}"):
        answer = (await inference.private("GET", path)).must(200)
        assert (answer.headers["Content-Type"], answer.body) == ("application/zip", content)
    for body in (task, b"no zip" * 100_000):
        uid = await inference.task(model, body)
        await inference.output(uid)
        answer = (await inference.private("GET", f"/api/tasks/inputs/{uid}")).must(200)
        assert (answer.headers["Content-Type"], answer.body) == ("application/zip", body)


async def test_what_is_not_there_is_told_plainly(inference: InferenceServer) -> None:
    """554 with one level of `detail` for tasks and models, and no reason phrase."""
    without = (await inference.private("GET", f"/api/models/human_readable_id/{await inference.model()}")).json["uid"]
    for method, path, options, told in (
        ("GET", f"/api/tasks/{NOBODY}", {}, "Task not found"),
        ("DELETE", f"/api/tasks/{NOBODY}", {}, "Task not found"),
        ("GET", f"/api/tasks/inputs/{NOBODY}", {}, "Task not found"),
        ("GET", f"/api/tasks/outputs/{NOBODY}", {}, "Task not found"),
        ("POST", f"/api/tasks/outputs/{NOBODY}", {"data": form(packed())}, "Task not found"),
        ("PUT", f"/api/tasks/?uid={NOBODY}&status=1", {}, "Task not found"),
        ("GET", f"/api/models/{NOBODY}", {}, "Model not found"),
        ("GET", "/api/models/human_readable_id/none", {}, "Model not found"),
        ("GET", f"/api/models/zips/{NOBODY}", {}, "Model not found"),
        ("GET", f"/api/models/zips/x?uid={NOBODY}", {}, "Model not found"),
        ("GET", f"/api/models/zips/{without}", {}, "Model not found"),
    ):
        answer = await inference.private(method, path, **options)
        assert (answer.status, answer.reason, answer.json) == (UNKNOWN, "", {"detail": told}), path
    answer = await inference.private("POST", "/api/tasks/?model_human_readable_id=none", data=form(packed()))
    assert (answer.status, answer.json) == (NO_MODEL, {"detail": "ModelNotFound"})


@pytest.mark.parametrize("origin", ["https://example.org", "http://localhost:3000", "null", ""])
async def test_a_page_of_another_site_is_not_answered(inference: InferenceServer, origin: str) -> None:
    """What a browser sends for it is 403 before anything is done; its own pages and programs are answered."""
    asked = {"container_tag": SHELL, "human_readable_id": f"of-{len(origin)}"}
    path, headers = "/api/models/", {"Origin": origin}
    answer = await inference.private("POST", path, params=asked, headers=headers)
    assert (answer.status, answer.told) == (403, "the private API is not for pages of other sites")
    (await inference.private("GET", f"/api/models/human_readable_id/{asked['human_readable_id']}")).must(UNKNOWN)
    own = {"Origin": inference.bases["private"]}
    (await inference.private("POST", path, params=asked, headers=own)).must(200)


async def test_the_output_is_there_on_both_listeners(inference: InferenceServer, tmp_path: Path) -> None:
    """551 to 553 and the zip are those of the public listener, less one level."""
    model = await inference.model()
    script = waits(tmp_path / "gate", 'echo out > "$HOLOSCAN_OUTPUT_PATH/a"')
    uid, failed = await inference.task(model, packed(script)), await inference.task(model, packed("exit 1"))
    path = f"/api/tasks/outputs/{uid}"
    answer = await inference.private("GET", path)
    assert (answer.status, answer.json) == (ALIVE, {"detail": "Task pending"})
    (tmp_path / "gate").touch()
    (await inference.output(uid)).must(200)
    answer = (await inference.private("GET", path)).must(200)
    assert (answer.headers["Content-Type"], unpacked(answer.body)) == ("application/zip", {"a": b"out\n"})
    await inference.output(failed)
    answer = await inference.private("GET", f"/api/tasks/outputs/{failed}")
    assert (answer.status, answer.json) == (FAILED, {"detail": "Task failed"})


# --- what is said of a task ---


async def test_a_status_that_is_said_counts(inference: InferenceServer, native: Api, tmp_path: Path) -> None:
    """2 sets the time of dispatch, 0 and 1 that of the end; its own job stops and has no say any more."""
    uid = await inference.task(await inference.model(), packed(waits(tmp_path / "gate")))
    begun = await inference.until(uid, RUNNING)
    said_running = (await said(inference, uid, RUNNING)).must(200).json
    assert (said_running["status"], said_running["datetime_finished"]) == (RUNNING, None)
    assert said_running["datetime_dispatched"] > begun["datetime_dispatched"]
    await job_of(native, begun, "canceled")
    (await inference.public("GET", f"/api/tasks/{uid}")).must(ALIVE)
    told = (await said(inference, uid, FINISHED)).must(200).json
    assert (told["status"], told["datetime_dispatched"]) == (FINISHED, said_running["datetime_dispatched"])
    assert told["datetime_finished"] > told["datetime_dispatched"]
    answer = await inference.public("GET", f"/api/tasks/{uid}")
    assert (answer.status, answer.told) == (NO_OUTPUT, {"detail": "Task finished, but output zip not found"})
    answer = await inference.private("GET", f"/api/tasks/outputs/{uid}")
    assert (answer.status, answer.reason, answer.told) == (NO_OUTPUT, "", "Task finished, but output zip not found")
    (await said(inference, uid, LOST)).must(200)
    (await inference.public("GET", f"/api/tasks/{uid}")).must(FAILED)


async def test_when_a_task_began_is_not_forgotten(inference: InferenceServer, native: Api, tmp_path: Path) -> None:
    """Who says how a running task ended does not say when it began: that stays as it was told."""
    uid = await inference.task(await inference.model(), packed(waits(tmp_path / "gate")))
    began = await inference.until(uid, RUNNING)
    told = (await said(inference, uid, LOST)).must(200).json
    await job_of(native, began, "canceled")
    async with asyncio.timeout(work.PATIENCE_S):
        while told["datetime_dispatched"] != began["datetime_dispatched"]:
            told = await inference.told(uid)
    assert told["status"] == LOST


async def test_a_status_that_is_none_is_told(inference: InferenceServer) -> None:
    """422 that names the parameter, and the task is what it was."""
    uid = await inference.task(await inference.model(), packed())
    await inference.until(uid, FINISHED)
    before = await inference.told(uid)
    for query, loc in (
        (f"uid={uid}&status=7", "status"),
        (f"uid={uid}&status=-1", "status"),
        (f"uid={uid}&status=done", "status"),
        (f"uid={uid}", "status"),
        ("status=1", "uid"),
    ):
        (told,) = (await inference.private("PUT", f"/api/tasks/?{query}")).must(422).told
        assert told["loc"] == ["query", loc], query
    assert await inference.told(uid) == before


async def test_an_output_that_is_posted_wins(inference: InferenceServer, native: Api, tmp_path: Path) -> None:
    """Over a running job, which ends, over the results of one, and over another that was posted, byte for byte."""
    model = await inference.model()
    running = await inference.task(model, packed(waits(tmp_path / "gate")))
    over = await inference.task(model, packed())
    await inference.until(running, RUNNING)
    (await inference.output(over)).must(200)
    bodies = [packed("first"), packed("second")]
    for uid in (running, over):
        for body in bodies:
            answer = await inference.private("POST", f"/api/tasks/outputs/{uid}", data=form(body))
            told = answer.must(200).json
            assert (told["status"], told["uid"]) == (FINISHED, uid)
            assert told["datetime_finished"]
            for path, ask in (
                (f"/api/tasks/{uid}", inference.public),
                (f"/api/tasks/outputs/{uid}", inference.private),
            ):
                assert (await ask("GET", path)).must(200).body == body
    await job_of(native, await inference.told(running), "canceled")
    assert (await inference.public("GET", f"/api/tasks/{running}")).must(200).body == bodies[-1]


async def test_an_output_is_a_file(inference: InferenceServer) -> None:
    """422 without one, and the task goes on."""
    uid = await inference.task(await inference.model(), packed())
    (told,) = (await inference.private("POST", f"/api/tasks/outputs/{uid}")).must(422).told
    assert told["loc"] == ["body", "zip_file"]
    assert "out/a.dcm" in unpacked((await inference.output(uid)).must(200).body)


async def test_a_uid_can_be_given(inference: InferenceServer) -> None:
    """Once: 409 afterwards, even when that task was deleted, and the first stays what it was."""
    query = {"model_human_readable_id": await inference.model(), "uid": "Müller's 1st + last"}
    made = (await inference.private("POST", "/api/tasks/", params=query, data=form(packed("true")))).must(200).json
    assert made.keys() == TASK_KEYS
    assert made["uid"] == query["uid"]
    path = "/api/tasks/M%C3%BCller's%201st%20+%20last"
    async with asyncio.timeout(work.PATIENCE_S):
        while (answer := await inference.public("GET", path)).status == ALIVE:
            await asyncio.sleep(0.01)
    assert answer.status == 200
    for _ in range(2):
        again = await inference.private("POST", "/api/tasks/", params=query, data=form(packed("exit 1")))
        assert again.status == 409
        (await inference.public("DELETE", path))
    for uid in ("a/b", "", "a\nb", "x" * 256):
        refused = await inference.private("POST", "/api/tasks/", params=query | {"uid": uid}, data=form(packed()))
        assert refused.must(422).told[0]["loc"] == ["query", "uid"]


async def test_who_stops_a_task_lets_no_output_go(api: Api, tmp_path: Path) -> None:
    """What somebody is posting right then is not known of the task yet; its input goes all the same."""
    archive = tmp_path / "a.zip"
    await asyncio.to_thread(archive.write_bytes, packed())
    task = Task(
        id=NOBODY,
        number=1,
        model="m",
        model_human_readable_id="m",
        created_at=clock.now(),
        todo=Todo.STOP,
        status=Status.FINISHED,
    )
    documents = SqliteDocuments(tmp_path / "documents", sync="normal")
    await documents.open(ALL)
    async with AsyncClient(api.url, api.token) as gurney:
        store, stock, settings = Store(documents, None), Stock(gurney), InferenceServerSettings(token="t")
        output = await stock.keep(task, archive, "output-1")
        await stock.unpack(task, archive, "input")
        await store.insert(TASKS, task)
        await Steps(store, gurney, stock, Models(store, gurney, stock, settings, posting=Posting("me")), settings).stop(
            task
        )
    assert (await store.get(TASKS, task.id)).todo is Todo.NOTHING
    assert [each["id"] for each in await api.all("/v1/payloads")] == [output]
    await documents.close()


# --- deletion ---


async def test_a_pending_task_that_is_deleted_never_starts(
    inference: InferenceServer, native: Api, tmp_path: Path
) -> None:
    """200, status 0, and its run leaves no mark, though the ones around it do."""
    model = await inference.model()
    mark = 'touch "{}"'
    first = [await inference.task(model, packed(waits(tmp_path / "gate"))) for _ in range(2)]
    for uid in first:
        await inference.until(uid, RUNNING)
    waiting = await inference.task(model, packed(mark.format(tmp_path / "mark")))
    number = await inference.told(waiting)
    assert number["status"] == PENDING
    told = (await inference.private("DELETE", f"/api/tasks/{waiting}")).must(200).json
    assert (told["is_deleted"], told["status"], told["uid"]) == (True, LOST, waiting)
    (await inference.private("GET", f"/api/tasks/{waiting}")).must(UNKNOWN)
    last = await inference.task(model, packed(mark.format(tmp_path / "last")))
    (tmp_path / "gate").touch()
    for uid in (*first, last):
        (await inference.output(uid)).must(200)
    assert (tmp_path / "last").exists()
    assert not (tmp_path / "mark").exists()
    assert f"task-{number['id']}-" not in str([job for job in await native.all("/v1/jobs") if job["started_at"]])


async def test_a_running_task_is_not_deleted(inference: InferenceServer, tmp_path: Path) -> None:
    """409, and it goes on to its output; then it can be."""
    script = waits(tmp_path / "gate", 'echo out > "$HOLOSCAN_OUTPUT_PATH/a"')
    uid = await inference.task(await inference.model(), packed(script))
    await inference.until(uid, RUNNING)
    answer = (await inference.private("DELETE", f"/api/tasks/{uid}")).must(409)
    assert answer.json == {"detail": "Task is running"}
    (tmp_path / "gate").touch()
    assert unpacked((await inference.output(uid)).must(200).body) == {"a": b"out\n"}
    assert (await inference.private("DELETE", f"/api/tasks/{uid}")).must(200).json["status"] == FINISHED
    (await inference.private("DELETE", f"/api/tasks/{uid}")).must(UNKNOWN)


# --- at once ---


async def test_of_two_at_once_one_has_the_name(inference: InferenceServer, native: Api) -> None:
    """One uid is one task, one readable id one model, however many are posted at once; of the others nothing stays."""
    name = await inference.model()
    query = {"model_human_readable_id": name, "uid": "one"}
    posts = [inference.private("POST", "/api/tasks/", params=query, data=form(packed("true"))) for _ in range(6)]
    assert sorted(answer.status for answer in await asyncio.gather(*posts)) == [200, *[409] * 5]
    (await inference.output("one")).must(200)
    content = len(await native.all("/v1/payloads"))
    asked = {"container_tag": SHELL, "human_readable_id": "one", "model_available": "1", "use_gpu": "0"}
    posts = [inference.private("POST", "/api/models/", params=asked, data=form(packed())) for _ in range(6)]
    assert sorted(answer.status for answer in await asyncio.gather(*posts)) == [200, *[409] * 5]
    models = [
        each for each in (await inference.public("GET", "/api/models/")).json if each["human_readable_id"] == "one"
    ]
    assert len(models) == 1
    assert len(await native.all("/v1/payloads")) <= content + 2
    assert len(await native.all("/v1/jobs?label=inference-server.model%3D" + name)) == 1


# --- models ---

NAMES = ["a/b", "/", "a//b/", "two words", "100 % ?#&+=;", "Müller", "a\\b", "%2F", "..", "a/../b", "'\"", "x" * 1000]


@pytest.mark.req("INF-01")
@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:12])
async def test_a_model_is_found_by_whatever_it_is_called(inference: InferenceServer, name: str) -> None:
    """By its uid and by its readable id, with slashes as they are or encoded; and its tasks run."""
    asked = {"container_tag": SHELL, "human_readable_id": name, "use_gpu": "false"}
    made = (await inference.private("POST", "/api/models/", params=asked)).must(200).json
    assert len(made) == 9
    found = (await inference.private("GET", f"/api/models/{made['uid']}")).must(200).json
    assert found == made
    for safe in ("", "/"):
        written = "".join(each if each in safe else quoted(each) for each in name)
        assert (await inference.private("GET", f"/api/models/human_readable_id/{written}")).must(200).json == made
    assert made in (await inference.private("GET", "/api/models/")).must(200).json
    (await inference.output(await inference.task(name, packed("true")))).must(200)


def quoted(each: str) -> str:
    return "".join(f"%{byte:02X}" for byte in each.encode())
