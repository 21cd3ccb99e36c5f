"""InferenceServer's clients, against Gurney: what its public API answers, and how tasks run."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.inference_server import (
    ALIVE,
    FAILED,
    KEPT,
    NO_MODEL,
    SHELL,
    UNKNOWN,
    InferenceServer,
    Listener,
    form,
    packed,
    waits,
)
from tests.e2e.servers import Server
from tests.e2e.zips import unpacked

pytestmark = [pytest.mark.timeout(180)]

MODEL_KEYS = {
    "uid",
    "human_readable_id",
    "description",
    "container_tag",
    "use_gpu",
    "model_available",
    "model_volume_id",
}
#: A status of its own, and what clients find in the body.
TOLD_ALIVE, TOLD_FAILED, TOLD_UNKNOWN = "Task pending", "Task failed", "Task not found"


@pytest.mark.req("INF-06")
async def test_each_listener_says_what_it_is(inference: InferenceServer) -> None:
    """A welcome that names the listener, a page for people, and a document for machines."""
    named: dict[Listener, str] = {"public": "public", "private": "private", "v2": "version 2.0"}
    for listener, name in named.items():
        welcome = (await inference.ask(listener, "GET", "/")).must(200).json
        assert welcome["message"].startswith("Hello world")
        assert name in welcome["message"]
        page = (await inference.ask(listener, "GET", "/docs")).must(200)
        assert page.headers["Content-Type"].startswith("text/html")
        described = (await inference.ask(listener, "GET", "/openapi.json")).must(200).json
        assert "/api/tasks/" in described["paths"]


@pytest.mark.req("INF-02", "INF-09")
async def test_a_zip_goes_in_and_a_zip_comes_out(inference: InferenceServer) -> None:
    """A task is alive, then there is its output, as often as one asks: every file and every empty folder."""
    uid = await inference.task(await inference.model(), packed())
    statuses: list[int] = []
    async with asyncio.timeout(work.PATIENCE_S):
        while not statuses or statuses[-1] == ALIVE:
            answer = await inference.public("GET", f"/api/tasks/{uid}")
            statuses.append(answer.status)
    assert statuses == [ALIVE] * (len(statuses) - 1) + [200]
    assert len(statuses) > 1
    for _ in range(3):
        answer = (await inference.public("GET", f"/api/tasks/{uid}")).must(200)
        assert answer.headers["Content-Type"] == "application/zip"
        assert unpacked(answer.body) == {
            "out/a.dcm": KEPT.encode(),
            f"out/{KEPT}/Müller.dcm": (KEPT * 9).encode(),
            "empty/inner/": b"",
        }


@pytest.mark.req("INF-02")
async def test_what_is_told_of_a_task(inference: InferenceServer, tmp_path: Path) -> None:
    """551 while it lives, 552 when it failed, 554 for a uid that nobody has: nested once more, and no reason phrase."""
    model = await inference.model()
    running = await inference.task(model, packed(waits(tmp_path / "gate")))
    failed = await inference.task(model, packed("exit 3"))
    await inference.until(running, 2)
    for uid, status, told in (
        (running, ALIVE, TOLD_ALIVE),
        (failed, FAILED, TOLD_FAILED),
        ("x" * 43, UNKNOWN, TOLD_UNKNOWN),
    ):
        answer = await inference.output(uid) if uid == failed else await inference.public("GET", f"/api/tasks/{uid}")
        assert (answer.status, answer.reason, answer.json) == (status, "", {"detail": {"detail": told}})


async def test_a_run_that_writes_nothing_has_an_empty_output(inference: InferenceServer) -> None:
    """200 with an archive in which nothing is."""
    answer = await inference.output(await inference.task(await inference.model(), packed("true")))
    assert (answer.status, unpacked(answer.body)) == (200, {})


@pytest.mark.req("INF-02")
async def test_every_upload_has_a_uid_of_its_own(inference: InferenceServer) -> None:
    """43 URL-safe characters that nobody can guess: neither what comes next nor what was before."""
    model = await inference.model()
    uids = [await inference.task(model, packed("true")) for _ in range(12)]
    assert len(set(uids)) == len(uids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", uid) for uid in uids)
    assert len({uid[:6] for uid in uids}) == len({uid[-6:] for uid in uids}) == len(uids)
    answer = await inference.public("POST", f"/api/tasks/?model_human_readable_id={model}", data=form(packed("true")))
    assert answer.headers["Content-Type"].startswith("application/json")
    assert isinstance(answer.json, str)


@pytest.mark.req("INF-02")
async def test_a_model_that_is_not_there_takes_no_task(inference: InferenceServer, native: Api) -> None:
    """550, and nothing stays."""
    before = {each["id"] for each in await native.all("/v1/payloads")}
    answer = await inference.public("POST", "/api/tasks/?model_human_readable_id=none", data=form(packed()))
    assert (answer.status, answer.reason, answer.json) == (NO_MODEL, "", {"detail": "ModelNotFound"})
    assert {each["id"] for each in await native.all("/v1/payloads")} <= before


@pytest.mark.req("INF-02", "INF-09")
async def test_what_is_missing_is_named(inference: InferenceServer) -> None:
    """422 with the place of each parameter and of the file; form fields are no parameters."""
    model = await inference.model()
    for path, options, missing in (
        ("/api/tasks/", {}, [["query", "model_human_readable_id"], ["body", "zip_file"]]),
        (f"/api/tasks/?model_human_readable_id={model}", {}, [["body", "zip_file"]]),
        ("/api/tasks/", {"data": form(packed())}, [["query", "model_human_readable_id"]]),
        ("/api/models/", {}, [["query", "container_tag"], ["query", "human_readable_id"]]),
        ("/api/models/", {"data": {"container_tag": "a", "human_readable_id": "b"}}, None),
        ("/api/models/", {"json": {"container_tag": "a", "human_readable_id": "b"}}, None),
        ("/api/models/?container_tag=a", {}, [["query", "human_readable_id"]]),
    ):
        told = (await inference.public("POST", path, **options)).must(422).told
        wanted = missing or [["query", "container_tag"], ["query", "human_readable_id"]]
        assert [each["loc"] for each in told] == wanted, path
        assert {(each["msg"], each["type"]) for each in told} == {("field required", "value_error.missing")}


@pytest.mark.req("INF-09")
async def test_paths_are_those_of_the_original(inference: InferenceServer) -> None:
    """307 where a slash is missing, 405 where another verb would do, 404 where nothing is."""
    for method, path, there in (
        ("GET", "/api/models", "/api/models/"),
        ("POST", "/api/models?container_tag=a", "/api/models/?container_tag=a"),
        ("POST", "/api/tasks?model_human_readable_id=a", "/api/tasks/?model_human_readable_id=a"),
    ):
        answer = (await inference.public(method, path)).must(307)
        assert answer.headers["Location"] == there
    for method, path, status in (
        ("GET", "/api/tasks/", 405),
        ("PUT", "/api/tasks/", 405),
        ("DELETE", "/api/models/", 405),
        ("POST", f"/api/tasks/{'x' * 43}", 405),
        ("GET", f"/api/tasks/outputs/{'x' * 43}", 404),
        ("GET", f"/api/tasks/inputs/{'x' * 43}", 404),
        ("GET", "/api/models/zips/x", 404),
        ("GET", "/metrics", 404),
    ):
        answer = await inference.public(method, path)
        assert (answer.status, list(answer.json)) == (status, ["detail"]), path


# --- models ---


@pytest.mark.req("INF-01", "INF-10")
async def test_a_model_is_a_tag_with_an_id(inference: InferenceServer) -> None:
    """Its keys are those of the original; a GPU is taken, and no content, where nothing is said of them."""
    asked = {"container_tag": SHELL, "human_readable_id": "a model", "more": "ignored"}
    made = (await inference.public("POST", "/api/models/", params=asked)).must(200).json
    assert made.keys() == MODEL_KEYS | {"id", "model_zip"}
    assert isinstance(made["id"], int)
    assert re.fullmatch(r"[0-9a-f]{64}", made["uid"])
    assert (made["container_tag"], made["human_readable_id"], made["description"]) == (SHELL, "a model", None)
    assert (made["use_gpu"], made["model_available"], made["model_volume_id"], made["model_zip"]) == (
        True,
        False,
        None,
        None,
    )
    listed = {each["uid"]: each for each in (await inference.public("GET", "/api/models/")).must(200).json}
    assert listed[made["uid"]] == {key: made[key] for key in MODEL_KEYS}


@pytest.mark.req("INF-01", "INF-03", "INF-10")
async def test_a_model_brings_its_content_along(inference: InferenceServer) -> None:
    """Every run finds the files that were posted with it, beside its input."""
    content = packed("weights")
    asked = {"container_tag": SHELL, "human_readable_id": "with content", "model_available": "true", "use_gpu": "no"}
    asked["description"] = "told to people"
    made = (await inference.public("POST", "/api/models/", params=asked, data=form(content))).must(200).json
    assert (made["model_available"], made["model_volume_id"]) == (True, made["uid"])
    assert made["description"] == "told to people"
    assert isinstance(made["model_zip"], str)
    script = 'cp -r "$GURNEY_CONTENT_PATH" "$HOLOSCAN_OUTPUT_PATH/model"'
    for _ in range(2):
        answer = await inference.output(await inference.task("with content", packed(script)))
        assert unpacked(answer.must(200).body)["model/run.sh"] == b"weights"


@pytest.mark.req("INF-10")
async def test_a_model_that_does_not_fit_is_not_stored(inference: InferenceServer, native: Api) -> None:
    """A readable id that is taken, content that is promised and not given or given and not promised, and no zip."""
    taken = await inference.model()
    before = await ids_of(native)
    models = (await inference.public("GET", "/api/models/")).json
    for query, data, status in (
        ({"human_readable_id": taken}, None, 409),
        ({"human_readable_id": taken, "model_available": "1"}, form(packed()), 409),
        ({"human_readable_id": "new", "model_available": "true"}, None, 422),
        ({"human_readable_id": "new"}, form(packed()), 422),
        ({"human_readable_id": "new", "model_available": "0"}, form(packed()), 422),
        ({"human_readable_id": "new", "model_available": "true"}, form(b"no zip"), 422),
        ({"human_readable_id": "new", "model_available": "true"}, form(packed(files={"../x": "y"})), 422),
        ({"human_readable_id": "new", "container_tag": "not a reference"}, None, 422),
        ({"human_readable_id": "new", "container_tag": ""}, None, 422),
        ({"human_readable_id": ""}, None, 422),
        ({"human_readable_id": "two\nlines"}, None, 422),
        ({"human_readable_id": "nul\0"}, None, 422),
        ({"human_readable_id": "new", "use_gpu": "perhaps"}, None, 422),
        ({"human_readable_id": "x" * 1025}, None, 422),
    ):
        answer = await inference.public("POST", "/api/models/", params={"container_tag": SHELL, **query}, data=data)
        assert answer.status == status, (query, answer)
        assert answer.told
    assert (await inference.public("GET", "/api/models/")).json == models
    assert await ids_of(native) <= before  # scratch of tasks of other tests may go meanwhile


async def ids_of(native: Api) -> set[str]:
    """Return the ids of all payloads and MAPs."""
    return {each["id"] for path in ("/v1/payloads", "/v1/maps") for each in await native.all(path)}


@pytest.mark.req("INF-09")
async def test_truth_has_many_names(inference: InferenceServer) -> None:
    """True, 1, yes, on, t and y in any case, and their opposites; anything else is told."""
    for words, meant in (("True true 1 yes ON t Y", True), ("False false 0 no off f N", False)):
        for word in words.split():
            asked = {"container_tag": SHELL, "human_readable_id": f"truth {word}", "use_gpu": word}
            assert (await inference.public("POST", "/api/models/", params=asked)).must(200).json["use_gpu"] is meant
    asked = {"container_tag": SHELL, "human_readable_id": "truth", "use_gpu": "maybe"}
    (told,) = (await inference.public("POST", "/api/models/", params=asked)).must(422).told
    assert (told["loc"], told["type"]) == (["query", "use_gpu"], "type_error.bool")


@pytest.fixture
async def closed(server: Server, tmp_path: Path) -> AsyncIterator[InferenceServer]:
    """A façade that takes models on its private listener alone."""
    process = await asyncio.to_thread(InferenceServer, server, tmp_path, ALLOW_PUBLIC_POST_MODEL="")
    await asyncio.to_thread(process.start)
    yield process
    await asyncio.to_thread(process.child.stop)


@pytest.mark.req("INF-12", "INF-05")
async def test_models_come_from_outside_where_that_is_said(closed: InferenceServer) -> None:
    """An empty word shuts the public listener to them; any other, even `false`, opens it: the shared one has that."""
    asked = {"container_tag": SHELL, "human_readable_id": "a"}
    (await closed.public("POST", "/api/models/", params=asked)).must(405)
    assert (await closed.public("GET", "/api/models/")).must(200).json == []
    (await closed.private("POST", "/api/models/", params=asked)).must(200)
    assert len((await closed.public("GET", "/api/models/")).must(200).json) == 1
    described = (await closed.public("GET", "/openapi.json")).json["paths"]
    assert described["/api/models/"].keys() == {"get"}


@pytest.fixture
async def paper(tmp_path: Path, maps: Path) -> AsyncIterator[InferenceServer]:
    """A façade before a server whose node has a GPU on paper."""

    def begin() -> tuple[EmbeddedProcess, InferenceServer]:
        server = EmbeddedProcess(tmp_path / "server", maps, ENVIRONMENT | {"GURNEY_GPUS": "1x16Gi"}).start()
        try:
            process = InferenceServer(server, tmp_path)
            process.start()
        except BaseException:
            server.stop()
            raise
        return server, process

    server, process = await asyncio.to_thread(begin)
    yield process
    await asyncio.to_thread(process.child.stop)
    await asyncio.to_thread(server.stop)


@pytest.mark.req("INF-01")
async def test_a_model_that_needs_a_gpu_has_one(paper: InferenceServer) -> None:
    """A whole one for the run, while a model that needs none sees none."""
    script = 'printf "%s" "$CUDA_VISIBLE_DEVICES" > "$HOLOSCAN_OUTPUT_PATH/sees"'
    for needs in (True, False):
        uid = await paper.task(await paper.model(use_gpu=str(needs)), packed(script))
        sees = unpacked((await paper.output(uid)).must(200).body)["sees"]
        assert bool(sees) is needs


async def test_a_model_that_needs_a_gpu_fails_where_there_is_none(inference: InferenceServer) -> None:
    """551, then 552 for good."""
    uid = await inference.task(await inference.model(use_gpu="true"), packed("true"))
    for _ in range(2):
        (await inference.output(uid)).must(FAILED)


async def test_a_tag_that_nobody_has_fails_its_tasks(inference: InferenceServer) -> None:
    """The model is taken as by the original, and its tasks are alive until it is known that nothing can run."""
    uid = await inference.task(await inference.model("urn:gurney:dir:no-such-map"), packed("true"))
    (await inference.output(uid)).must(FAILED)


@pytest.mark.req("INF-10")
async def test_a_description_may_be_a_page(inference: InferenceServer) -> None:
    """Parameters stand in the first line of a request, which is as long as that takes."""
    for text in ("long " * 10_000, "ä" * 20_000):
        name = await inference.model(description=text)
        assert (await inference.private("GET", f"/api/models/human_readable_id/{name}")).must(200).json[
            "description"
        ] == text


# --- deletion, and what is seen of it all ---


@pytest.mark.req("INF-02", "INF-08")
async def test_a_deleted_task_is_gone_with_all_its_data(
    inference: InferenceServer, native: Api, tmp_path: Path
) -> None:
    """200 with the task whether it runs or is over; then 554 for good, and no job, input or output is left."""
    model = await inference.model()
    running = await inference.task(model, packed(waits(tmp_path / "gate")))
    over = await inference.task(model, packed())
    (await inference.output(over)).must(200)
    await inference.until(running, 2)
    before = len(await native.all("/v1/payloads"))
    for uid, status in ((running, 0), (over, 1)):
        told = (await inference.public("DELETE", f"/api/tasks/{uid}")).must(200).json
        assert (told["uid"], told["is_deleted"], told["status"]) == (uid, True, status)
        for method in ("GET", "DELETE"):
            answer = (await inference.public(method, f"/api/tasks/{uid}")).must(UNKNOWN)
            assert answer.json == {"detail": {"detail": TOLD_UNKNOWN}}
    async with asyncio.timeout(work.PATIENCE_S):
        while any(job["labels"].get("inference-server.model") == model for job in await native.all("/v1/jobs")):
            await asyncio.sleep(0.02)
        while len(await native.all("/v1/payloads")) > before - 4:  # two uploads, an input, an output
            await asyncio.sleep(0.02)
    again = await inference.task(model, packed("true"))
    (await inference.output(again)).must(200)


@pytest.mark.req("INF-03")
async def test_gurney_shows_a_task_as_a_job(inference: InferenceServer, native: Api) -> None:
    """With the model's name and the task's number; who reads it cannot tell the uid, and its input goes at its end."""
    model = await inference.model()
    uid = await inference.task(model, packed())
    (await inference.output(uid)).must(200)
    number = (await inference.told(uid))["id"]
    query = f"/v1/jobs?label=inference-server%3Dtask&label=inference-server.model%3D{model}"
    (job,) = await native.all(query)
    assert job["labels"]["inference-server.id"].startswith(f"task-{number}-")
    async with asyncio.timeout(work.PATIENCE_S):
        while (await native.get(f"/v1/payloads/{job['payload']}", case="of a task that is over")).status != 404:
            await asyncio.sleep(0.02)
    shown = [await native.all(path) for path in ("/v1/jobs", "/v1/payloads", "/v1/maps")]
    story = (await native.get(f"/v1/jobs/{job['id']}/story")).body.decode()
    assert uid not in f"{shown}{story}"
    assert uid not in inference.log
    assert uid not in inference.server.logs
    (await inference.output(uid)).must(200)
