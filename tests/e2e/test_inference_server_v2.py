"""Clients of InferenceServer's version 2.0, against Gurney."""

import asyncio
import io
import tarfile
from pathlib import Path

import pytest

from tests.e2e import work
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
    tarred,
    untarred,
    waits,
)

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(180), pytest.mark.req("INF-09")]

TASK_KEYS = {
    "id",
    "uid",
    "model_id",
    "model",
    "datetime_created",
    "input_tar",
    "output_tar",
    "datetime_dispatched",
    "datetime_finished",
    "status",
    "is_deleted",
}
MODEL_KEYS = {
    "id",
    "uid",
    "human_readable_id",
    "description",
    "container_tag",
    "use_gpu",
    "model_available",
    "model_volume_id",
    "model_tar",
    "dump_logs",
    "pull_on_every_run",
}
COPY = 'cp -r "$HOLOSCAN_INPUT_PATH/in" "$HOLOSCAN_OUTPUT_PATH/out"'
WRONG = {"X-Token": "wrong"}


def packed(script: str = COPY) -> bytes:
    return tarred({"run.sh": script.encode(), "in/a": b"1", "in/b/c": b"2" * 9})


async def posted(inference: InferenceServer, model: str, body: bytes) -> Reply:
    """Post a task; no token is needed."""
    data = form(body, "tar_file")
    return await inference.ask("v2", "POST", "/api/tasks/", params={"human_readable_id": model}, data=data)


async def output(inference: InferenceServer, uid: str) -> Reply:
    async with asyncio.timeout(work.PATIENCE_S):
        while (answer := await inference.ask("v2", "GET", f"/api/tasks/outputs/?uid={uid}")).status == ALIVE:
            await asyncio.sleep(0.01)
    return answer


async def test_a_tar_goes_in_and_a_tar_comes_out(inference: InferenceServer) -> None:
    """The task comes as an object with its model, and its output as a tar."""
    name = await inference.model()
    made = (await posted(inference, name, packed())).must(200).json
    assert made.keys() == TASK_KEYS
    assert made["model"].keys() == MODEL_KEYS
    assert (made["model"]["human_readable_id"], made["model_id"]) == (name, made["model"]["id"])
    assert (made["status"], made["is_deleted"]) in {(-1, False), (2, False)}
    answer = (await output(inference, made["uid"])).must(200)
    assert answer.headers["Content-Type"] == "application/x-tar"
    found = {name.rstrip("/"): content for name, content in untarred(answer.body).items() if content}
    assert found == {"out/a": b"1", "out/b/c": b"2" * 9}
    told = (await inference.v2("GET", f"/api/tasks/?task_id={made['id']}")).must(200).json
    assert told.keys() == TASK_KEYS
    assert (told["uid"], told["status"]) == (made["uid"], 1)


async def test_what_is_told_of_a_task(inference: InferenceServer, tmp_path: Path) -> None:
    """551, 552 and 553 as in version 1.2, 500 for a uid that nobody has, and no reason phrase."""
    name = await inference.model()
    alive = (await posted(inference, name, packed(waits(tmp_path / "gate")))).must(200).json
    failed = (await posted(inference, name, packed("exit 1"))).must(200).json
    bad = (await posted(inference, name, b"no tar")).must(200).json
    ended = (await posted(inference, name, packed(waits(tmp_path / "gate")))).must(200).json
    told = (await inference.v2("PUT", f"/api/tasks/?task_id={ended['id']}&status=1")).must(200).json
    assert (told["status"], told.keys()) == (1, TASK_KEYS)
    assert told["datetime_finished"]
    for uid in (failed["uid"], bad["uid"]):
        await output(inference, uid)
    for uid, status in (
        (alive["uid"], ALIVE),
        (failed["uid"], FAILED),
        (bad["uid"], FAILED),
        (ended["uid"], NO_OUTPUT),
        ("x" * 43, 500),
    ):
        answer = await inference.ask("v2", "GET", f"/api/tasks/outputs/?uid={uid}")
        assert answer.status == status
        assert isinstance(answer.told, str)
        assert answer.reason == ("Internal Server Error" if status == 500 else "")
    (await posted(inference, "none", packed())).must(NO_MODEL)


async def test_a_task_is_deleted(inference: InferenceServer, tmp_path: Path) -> None:
    """200 whether it runs or is over, 554 where nobody has it."""
    name = await inference.model()
    running = (await posted(inference, name, packed(waits(tmp_path / "gate")))).must(200).json
    await inference.until(running["uid"], 2)
    told = (await inference.ask("v2", "DELETE", f"/api/tasks/?uid={running['uid']}")).must(200).json
    assert (told["is_deleted"], told["status"], told.keys()) == (True, 0, TASK_KEYS)
    for uid in (running["uid"], "x" * 43):
        answer = (await inference.ask("v2", "DELETE", f"/api/tasks/?uid={uid}")).must(UNKNOWN)
        assert answer.reason == ""
    (await inference.ask("v2", "GET", f"/api/tasks/outputs/?uid={running['uid']}")).must(500)
    (await inference.v2("GET", f"/api/tasks/?task_id={running['id']}")).must(UNKNOWN)


def odd(name: str, kind: bytes, target: str = "") -> bytes:
    """Return a tar with a script and one entry of another kind."""
    out = io.BytesIO(packed("true"))
    with tarfile.open(fileobj=out, mode="a") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        archive.addfile(entry)
    return out.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(odd("link", tarfile.SYMTYPE, "/etc/passwd"), id="a link"),
        pytest.param(odd("link", tarfile.LNKTYPE, "run.sh"), id="a hard link"),
        pytest.param(odd("device", tarfile.CHRTYPE), id="a device"),
        pytest.param(odd("pipe", tarfile.FIFOTYPE), id="a pipe"),
        pytest.param(odd("../escaped", tarfile.REGTYPE), id="up"),
        pytest.param(odd("/tmp/escaped", tarfile.REGTYPE), id="absolute"),
        pytest.param(packed("true")[:700], id="cut"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_a_bad_tar_is_a_task_that_fails(inference: InferenceServer, body: bytes) -> None:
    """It is taken, and ends as 552 without a run."""
    made = (await posted(inference, await inference.model(), body)).must(200).json
    (await output(inference, made["uid"])).must(FAILED)
    told = (await inference.v2("GET", f"/api/tasks/?task_id={made['id']}")).must(200).json
    assert (told["status"], told["datetime_dispatched"]) == (0, None)


async def test_models(inference: InferenceServer) -> None:
    """Posted with what version 2.0 adds, found by number and by name, their tar byte for byte."""
    content = tarred({"weights": b"w" * 99})
    asked = {"container_tag": SHELL, "human_readable_id": "v2/one", "use_gpu": "0", "model_available": "1"}
    asked |= {"dump_logs": "yes", "pull_on_every_run": "true"}
    made = (await inference.v2("POST", "/api/models/", params=asked, data=form(content, "tar_file"))).must(200).json
    assert made.keys() == MODEL_KEYS
    assert (made["dump_logs"], made["pull_on_every_run"], made["model_volume_id"]) == (True, True, made["uid"])
    for query in (f"model_id={made['id']}", "human_readable_id=v2/one"):
        assert (await inference.v2("GET", f"/api/models/?{query}")).must(200).json == made
    answer = (await inference.v2("GET", f"/api/models/tars/?model_id={made['id']}")).must(200)
    assert (answer.headers["Content-Type"], answer.body) == ("application/x-tar", content)
    script = 'cp "$GURNEY_CONTENT_PATH/weights" "$HOLOSCAN_OUTPUT_PATH/w"'
    for _ in range(2):  # its image is pulled again for each
        task = (await posted(inference, "v2/one", packed(script))).must(200).json
        assert untarred((await output(inference, task["uid"])).must(200).body) == {"w": b"w" * 99}
    assert (await inference.v2("POST", "/api/models/", params=asked, data=form(content, "tar_file"))).status == 409


async def test_what_is_missing_is_told(inference: InferenceServer) -> None:
    """400 without the model that is looked for, 422 with the place of what else is missing or wrong."""
    (await inference.v2("GET", "/api/models/")).must(400)
    for method, path, loc in (
        ("GET", "/api/tasks/", ["query", "task_id"]),
        ("GET", "/api/tasks/?task_id=one", ["query", "task_id"]),
        ("PUT", "/api/tasks/?task_id=1", ["query", "status"]),
        ("GET", "/api/tasks/outputs/", ["query", "uid"]),
        ("DELETE", "/api/tasks/", ["query", "uid"]),
        ("POST", "/api/tasks/?human_readable_id=a", ["body", "tar_file"]),
        ("GET", "/api/models/tars/", ["query", "model_id"]),
    ):
        told = (await inference.v2(method, path)).must(422).told
        assert [each["loc"] for each in told] == [loc], path
    for path in ("?model_id=999999", "?human_readable_id=none", "tars/?model_id=999999"):
        answer = (await inference.v2("GET", f"/api/models/{path}")).must(UNKNOWN)
        assert answer.json == {"detail": "Model not found"}
    zipped = await inference.ask("v2", "POST", "/api/tasks/?human_readable_id=a", data=form(packed(), "zip_file"))
    assert zipped.must(422).told[0]["loc"] == ["body", "tar_file"]


async def test_the_token_guards_all_but_the_tasks_of_clients(inference: InferenceServer) -> None:
    """400 without the header or with another, before anything else is looked at."""
    for method, path in (
        ("GET", "/api/tasks/?task_id=1"),
        ("GET", "/api/tasks/"),
        ("PUT", "/api/tasks/?task_id=1&status=0"),
        ("POST", "/api/models/?container_tag=a&human_readable_id=b"),
        ("GET", "/api/models/?model_id=1"),
        ("GET", "/api/models/tars/?model_id=1"),
    ):
        for headers in ({}, WRONG, {"X-Token": ""}):
            answer = await inference.ask("v2", method, path, headers=headers)
            assert (answer.status, answer.json) == (400, {"detail": "X-Token header invalid"}), path
        assert await inference.raw("v2", f"{method} {path} HTTP/1.1\r\nX-Token: ".encode() + b"\xff\xfe") == 400
    assert [name for name in (await inference.public("GET", "/api/models/")).json if name["container_tag"] == "a"] == []
    (await inference.ask("v2", "GET", "/")).must(200)
