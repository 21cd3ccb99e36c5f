"""What the client of InferenceServer's API makes of servers, old ones too, and of zips."""

import io
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import BodyPartReader, web
from aiohttp.test_utils import TestServer
from yarl import URL

from gurney.cli.models_copied import copied
from gurney.client.http import Incoming, Json, _span
from gurney.client.inference_server import InferenceServer, State
from gurney.client.zips import outgoing, received, unpacked
from gurney.errors import Conflict, Forbidden, GurneyError, IntegrityError, Invalid, NotFound, TooLarge, Unavailable


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return a deflated zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


SPLEEN = packed({"weights/model.pt": b"weights" * 9_000, "config.json": b"{}"})


@dataclass
class OldServer:
    """An InferenceServer of old: what it has, what it was asked, and how it answers."""

    models: list[Any] = field(default_factory=list)
    zips: dict[str, bytes] = field(default_factory=dict)
    #: Query, and the size that was announced, of what was posted, with the file.
    posted: list[tuple[Json, int | None, bytes | None]] = field(default_factory=list)
    #: Where it is not None: status and body of every answer that is not a list of models.
    answer: tuple[int, Any] | None = None
    #: Answers to questions about a task, one after the other.
    told: list[int] = field(default_factory=list)
    url: str = ""

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(self.models)

    async def _zip(self, request: web.Request) -> web.Response:
        return web.Response(body=self.zips[request.query["uid"]], content_type="application/octet-stream")

    async def _post(self, request: web.Request) -> web.Response:
        content = None
        if request.content_type == "multipart/form-data":
            part = await (await request.multipart()).next()
            assert isinstance(part, BodyPartReader)
            assert (part.name, part.headers["Content-Type"]) == ("zip_file", "application/zip")
            assert part.filename
            content = bytes(await part.read())
        self.posted.append((dict(request.query), request.content_length, content))
        if self.answer:
            return web.json_response(self.answer[1], status=self.answer[0])
        return web.json_response("u" * 43 if "tasks" in request.path else {"uid": "1" * 64, **request.query})

    async def _task(self, _: web.Request) -> web.Response:
        status = self.told.pop(0)
        if status == 200:
            return web.Response(body=packed({"out.dcm": b"voxels"}), content_type="application/zip")
        return web.json_response({"detail": {"detail": "..."}}, status=status, reason="")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[InferenceServer]:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/api/models/", self._models)
        app.router.add_get("/api/models/zips/{uid}", self._zip)
        app.router.add_post("/api/models/", self._post)
        app.router.add_post("/api/tasks/", self._post)
        app.router.add_get("/api/tasks/{uid}", self._task)
        async with TestServer(app) as server, InferenceServer(str(server.make_url("/"))) as client:
            yield client


def model(name: str, **more: Any) -> Json:
    """Return a model as an old server tells it."""
    return {
        "id": 7,
        "uid": f"uid-{name}",
        "human_readable_id": name,
        "container_tag": f"registry/{name}:1",
        "description": None,
        "use_gpu": True,
        "model_available": False,
        "model_volume_id": None,
        "model_zip": None,
        **more,
    }


async def copy(old: OldServer, new: OldServer, only: list[str] | None = None, *, dry_run: bool = False) -> list[Json]:
    """Copy, and return what became of each model."""
    async with AsyncExitStack() as stack:
        source, target = [await stack.enter_async_context(each.serving()) for each in (old, new)]
        return [line async for line in copied(source, target, only, dry_run=dry_run, quiet=True)]


def outcomes(lines: list[Json]) -> dict[str, str]:
    return {line["human_readable_id"]: line["outcome"] for line in lines}


async def test_models_of_an_old_server_are_copied_as_they_are() -> None:
    """Id, image, description, GPU and zip arrive; what is there stays."""
    old = OldServer(
        [
            model("spleen", model_available=True, model_zip="/opt/models/x.zip", description="finds it", use_gpu=False),
            model("liver"),
            model("there"),
            model("other", container_tag="registry/other:2"),
        ],
        {"uid-spleen": SPLEEN},
    )
    new = OldServer([model("there"), model("other")])
    lines = await copy(old, new)
    assert outcomes(lines) == {"spleen": "copied", "liver": "copied", "there": "skipped", "other": "skipped"}
    assert "with another image: registry/other:1" in lines[3]["note"]
    (spleen, size, content), (liver, _, nothing) = new.posted
    assert spleen == {
        "human_readable_id": "spleen",
        "container_tag": "registry/spleen:1",
        "description": "finds it",
        "use_gpu": "False",
        "model_available": "True",
    }
    assert content == SPLEEN
    assert size is not None
    assert liver["use_gpu"] == "True"
    assert (liver["model_available"], nothing) == ("False", None)
    assert "description" not in liver


async def test_a_dry_run_copies_nothing() -> None:
    """It tells what would be copied, and of which models only."""
    old = OldServer([model("one"), model("two")])
    new = OldServer()
    assert outcomes(await copy(old, new, dry_run=True)) == {"one": "would be copied", "two": "would be copied"}
    assert new.posted == []
    assert outcomes(await copy(old, new, ["two", "three"])) == {"three": "failed", "two": "copied"}
    assert [query["human_readable_id"] for query, _, _ in new.posted] == ["two"]


async def test_one_model_that_fails_does_not_stop_the_rest() -> None:
    """A zip that is not to be had or is none, what cannot be read, and what the old server has twice."""
    old = OldServer(
        [
            model("lost", model_available=True),
            model("broken", model_available=True),
            {"human_readable_id": "strange", "container_tag": 7},
            "nonsense",
            {"human_readable_id": "bare", "container_tag": "registry/bare", "use_gpu": 0, "more": {}},
            model("bare"),
        ],
        {"uid-broken": SPLEEN[:-9]},
    )
    new = OldServer()
    lines = await copy(old, new)
    assert [line["outcome"] for line in lines] == ["failed", "failed", "failed", "failed", "copied", "skipped"]
    assert "container_tag" in lines[2]["note"]
    assert [query["use_gpu"] for query, _, _ in new.posted] == ["False"]


async def test_a_refused_model_is_told_with_its_reason() -> None:
    """The new server's answer stands in its line."""
    new = OldServer(answer=(422, {"detail": [{"loc": ["query", "container_tag"], "msg": "is no image"}]}))
    (line,) = await copy(OldServer([model("one")]), new)
    assert (line["outcome"], line["note"]) == ("failed", "container_tag: is no image (422)")


@pytest.mark.parametrize(
    ("status", "detail", "kind", "said"),
    [
        (550, "ModelNotFound", NotFound, r"there is no such model \(550\)"),
        (405, "Method Not Allowed", Forbidden, "ALLOW_PUBLIC_POST_MODEL"),
        (409, "there is a model", Conflict, r"there is a model \(409\)"),
        (413, {"detail": "too much"}, TooLarge, "too much"),
        (422, [{"loc": ["body", "zip_file"], "msg": "field required"}], Invalid, "zip_file: field required"),
        (500, None, GurneyError, "500"),
        (503, "away", Unavailable, "away"),
    ],
)
async def test_refusals_are_errors_of_ours(status: int, detail: Any, kind: type[GurneyError], said: str) -> None:
    """Each is one plain line."""
    old = OldServer(answer=(status, {"detail": detail}))
    async with old.serving() as server:
        with pytest.raises(kind, match=said) as raised:
            await server.post_model("registry/x", "x")
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)


async def test_who_waits_asks_until_a_task_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is away for a moment is asked again; a 500 is the end."""
    monkeypatch.setattr("gurney.client.inference_server.POLL_S", 0.01)
    monkeypatch.setattr("gurney.client.inference_server.PAUSE_S", 0.01)
    for told, state in (
        ([551, 503, 551, 200], State.FINISHED),
        ([551, 552], State.FAILED),
        ([553], State.NO_OUTPUT),
        ([554], State.UNKNOWN),
    ):
        old = OldServer(told=told)
        async with old.serving() as server, server.settled("secret-uid") as found:
            assert found.state is state
            assert (found.output is not None) == (state is State.FINISHED)
        assert old.told == []
    async with OldServer(told=[551, 500, 200]).serving() as server:
        with pytest.raises(GurneyError) as raised:
            async with server.settled("secret-uid"):
                pass
    assert "secret-uid" not in str(raised.value)


async def test_a_listener_that_is_the_wrong_one_is_told() -> None:
    """The private listener answers with JSON where the public one has an output, and a uid."""
    app = web.Application()

    async def task(_: web.Request) -> web.Response:
        return web.json_response({"uid": "x", "status": 1})

    app.router.add_get("/api/tasks/{uid}", task)
    app.router.add_get("/api/models/", task)
    async with TestServer(app) as running, InferenceServer(str(running.make_url("/"))) as server:
        with pytest.raises(Invalid, match="no public listener"):
            async with server.output("x"):
                pass
        with pytest.raises(Invalid, match="does not answer as InferenceServer"):
            await server.models()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/tasks/secret-uid", "GET /api/tasks"),
        ("/api/models/zips/uid?uid=uid", "GET /api/models/zips"),
        ("/v1/jobs/job_x/results/Mueller.dcm", "GET /v1/jobs/results"),
    ],
)
def test_a_span_tells_the_nouns_of_a_path_alone(path: str, name: str) -> None:
    """What else stands there may be a patient's, or all that is needed to fetch an output."""
    assert _span("GET", URL(f"http://there{path}", encoded=True))._name == name


# --- zips ---


async def test_files_and_folders_are_packed_while_they_are_sent(tmp_path: Path) -> None:
    """A zip goes as it is, with its size; a folder's files by their paths below it."""
    (tmp_path / "series" / "deep").mkdir(parents=True)
    (tmp_path / "series" / "1.dcm").write_bytes(b"one")
    (tmp_path / "series" / "deep" / "2.dcm").write_bytes(b"two")
    (tmp_path / "ready.ZIP").write_bytes(SPLEEN)
    old = OldServer()
    async with old.serving() as server:
        assert await server.post_task("a/b c", await outgoing([tmp_path / "ready.ZIP"])) == "u" * 43
        await server.post_task("x", await outgoing([tmp_path / "series"]))
        await server.post_task("x", await outgoing([tmp_path / "series" / "1.dcm", tmp_path / "ready.ZIP"]))
    (query, size, whole), (_, chunked, folder), (_, _, files) = old.posted
    assert query == {"model_human_readable_id": "a/b c"}
    assert whole == SPLEEN
    assert size is not None
    assert size > len(SPLEEN)
    assert chunked is None
    for content, names in ((folder, ["1.dcm", "deep/2.dcm"]), (files, ["1.dcm", "ready.ZIP"])):
        archive = zipfile.ZipFile(io.BytesIO(content or b""))
        assert archive.testzip() is None
        assert archive.namelist() == names


async def test_what_cannot_be_sent_is_told(tmp_path: Path) -> None:
    """What only has the name of a zip, and a folder without a file."""
    (tmp_path / "no.zip").write_bytes(b"text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match=r"no\.zip is no zip"):
        await outgoing([tmp_path / "no.zip"])
    with pytest.raises(Invalid, match="there are no files in"):
        await outgoing([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError):
        await outgoing([tmp_path / "none.zip"])


@pytest.mark.parametrize("change", [b"", b"more"], ids=["shorter", "longer"])
@pytest.mark.parametrize("name", ["x.zip", "x.dcm"])
async def test_a_file_that_changes_while_it_is_sent_is_no_task(tmp_path: Path, name: str, change: bytes) -> None:
    """The request breaks off, and the error says why: half a series is no input."""
    source = tmp_path / name
    source.write_bytes(SPLEEN)
    old = OldServer()
    async with old.serving() as server:
        archive = await outgoing([source])
        source.write_bytes((SPLEEN + change) if change else b"")
        with pytest.raises(IntegrityError, match=name):
            await server.post_task("x", archive)
    assert old.posted == []


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_what_comes_is_a_whole_zip_or_an_error(tmp_path: Path) -> None:
    """A zip that ends too soon is no output."""
    part = tmp_path / "part"
    assert await received(Incoming(_chunks(SPLEEN), None), part) == len(SPLEEN)
    with pytest.raises(IntegrityError, match="no sound zip"):
        await received(Incoming(_chunks(SPLEEN[:-30]), None), part)


async def test_an_output_is_unpacked_with_distrust(tmp_path: Path) -> None:
    """Nested files, empty folders and what deflates well arrive; nothing leaves the folder."""
    part, folder = tmp_path / "part", tmp_path / "out"
    folder.mkdir()
    content = {"a/b/c.dcm": bytes(5_000_000), "a/empty/": b"", "top": b"x"}
    part.write_bytes(packed(content))
    assert await unpacked(part, folder) == 2
    assert (folder / "a" / "b" / "c.dcm").stat().st_size == 5_000_000
    assert (folder / "a" / "empty").is_dir()
    part.write_bytes(packed({"fine": b"x", "../out.dcm": b"x"}))
    with pytest.raises(Invalid, match=r"\.\./out\.dcm"):
        await unpacked(part, folder)
    assert not (folder / "fine").exists()
    assert not (tmp_path / "out.dcm").exists()
