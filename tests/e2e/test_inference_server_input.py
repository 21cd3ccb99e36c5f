"""InferenceServer's clients, against Gurney: whatever is posted, the façade answers, and nothing of it escapes."""

import asyncio
import io
import struct
import zipfile
from collections.abc import Mapping

import pytest

from tests.e2e.api import Api
from tests.e2e.inference_server import FAILED, SHELL, UNKNOWN, InferenceServer, form, packed, tarred
from tests.e2e.zips import unpacked

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(180), pytest.mark.req("INF-02")]

MIB = 1024**2


def zipped(files: Mapping[str, bytes], *, attributes: int = 0, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip whose names are as they are given; `attributes`: of each entry, as Unix has them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = kind
            entry.external_attr = attributes << 16
            archive.writestr(entry, content)
    return out.getvalue()


def lying(size: int) -> bytes:
    """Return a zip of a script that counts its own bytes, which says that it has another size than it has."""
    body = bytearray(zipped({"run.sh": COUNT}))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = body.index(mark) + at
        body[start : start + 4] = struct.pack("<I", size)
    return bytes(body)


COUNT = b'wc -c < "$HOLOSCAN_INPUT_PATH/run.sh" > "$HOLOSCAN_OUTPUT_PATH/size"; ' + b"#" * 1000
LINK = 0o120777
_stored = zipped({"run.sh": b"stored"}, kind=zipfile.ZIP_STORED)
BAD = {
    "no zip": b"this is no zip",
    "nothing": b"",
    "a tar": tarred({"a": b"1"}),
    "cut": packed()[:-30],
    "its head alone": packed()[:40],
    "its tail alone": packed()[-60:],
    "a wrong checksum": _stored.replace(b"stored", b"sTored"),
    "up": zipped({"run.sh": b"true", "../escaped": b"x"}),
    "up inside": zipped({"run.sh": b"true", "in/../../escaped": b"x"}),
    "absolute": zipped({"run.sh": b"true", "/tmp/escaped": b"x"}),
    "a dot": zipped({"run.sh": b"true", ".": b"x"}),
    "a dot below": zipped({"run.sh": b"true", "in/./a": b"x"}),
    "two dots": zipped({"run.sh": b"true", "..": b"x"}),
    "backslashes": zipped({"run.sh": b"true", "..\\escaped": b"x"}),
    "a link": zipped({"run.sh": b"/etc/passwd"}, attributes=LINK),
    "a file in a file": zipped({"run.sh": b"true", "run.sh/a": b"x"}),
    "a bomb": zipped({"big": bytes(80 * MIB)}),
    "says too little": lying(9),
}
#: What may as well be taken for what it is: then the run finds nothing outside its input.
HARMLESS = {"a dot", "a dot below", "backslashes"}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in BAD.items()])
async def test_a_bad_zip_is_a_task_that_fails(
    inference: InferenceServer, native: Api, request: pytest.FixtureRequest, body: bytes
) -> None:
    """It is taken, ends as 552 without a run, is told as it was posted, and no file of it is anywhere else."""
    name = request.node.callspec.id.partition("-")[2]
    uid = await inference.task(await inference.model(), body)
    answer = await inference.output(uid)
    if name in HARMLESS and answer.status == 200:
        assert unpacked(answer.body) == {}
        return
    answer.must(FAILED)
    told = await inference.told(uid)
    assert (told["status"], told["datetime_dispatched"], told["output_zip"]) == (0, None, None)
    assert (await inference.private("GET", f"/api/tasks/inputs/{uid}")).must(200).body == body
    mine = f"inference-server.id%3Dtask-{told['id']}-"
    assert [job for job in await native.all("/v1/jobs") if mine in str(job["labels"])] == []
    for payload in await native.all("/v1/payloads"):
        paths = [file["path"] for file in await native.all(f"/v1/payloads/{payload['id']}/files")]
        assert not any("escaped" in path for path in paths)


@pytest.mark.parametrize("name", [name for name in BAD if name not in HARMLESS])
async def test_a_bad_zip_is_no_model(inference: InferenceServer, native: Api, name: str) -> None:
    """422 that names the file, and nothing of it stays."""
    before = {each["id"] for each in await native.all("/v1/payloads")}
    asked = {"container_tag": SHELL, "human_readable_id": f"bad {name}", "model_available": "true"}
    answer = await inference.private("POST", "/api/models/", params=asked, data=form(BAD[name]))
    assert answer.must(422).told[0]["loc"] == ["body", "zip_file"]
    (await inference.private("GET", f"/api/models/human_readable_id/bad%20{name.replace(' ', '%20')}")).must(UNKNOWN)
    assert {each["id"] for each in await native.all("/v1/payloads")} <= before


@pytest.mark.req("INF-09")
async def test_what_a_zip_may_have(inference: InferenceServer) -> None:
    """Stored and deflated entries, folders of their own, a comment and a name of several scripts."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.comment = b"a comment"
        archive.writestr("run.sh", 'cp -r "$HOLOSCAN_INPUT_PATH/in" "$HOLOSCAN_OUTPUT_PATH/out"', zipfile.ZIP_DEFLATED)
        archive.writestr("in/stored", b"1" * 99, zipfile.ZIP_STORED)
        archive.writestr("in/Müller 医/deflated", b"2" * 99, zipfile.ZIP_DEFLATED)
        archive.writestr("in/empty/", b"")
    answer = await inference.output(await inference.task(await inference.model(), out.getvalue()))
    assert unpacked(answer.must(200).body) == {
        "out/stored": b"1" * 99,
        "out/Müller 医/deflated": b"2" * 99,
        "out/empty/": b"",
    }


@pytest.mark.parametrize("size", [60 * MIB, 2**32 - 2])
async def test_what_a_zip_says_too_much_takes_no_room(inference: InferenceServer, size: int) -> None:
    """The bytes that are there count, not the ones that it says."""
    answer = await inference.output(await inference.task(await inference.model(), lying(size)))
    assert unpacked(answer.must(200).body) == {"size": f"{len(COUNT)}\n".encode()}


# --- bodies ---

PART = b'--b\r\nContent-Disposition: form-data; name="zip_file"; filename="x"\r\n\r\n'
END = b"x\r\n--b--\r\n"


FORM = "multipart/form-data; boundary=b"
BODIES = {
    "nothing": (b"", None),
    "the file alone": (b"raw bytes", "application/zip"),
    "a form": (b"zip_file=abc", "application/x-www-form-urlencoded"),
    "no boundary": (PART + END, "multipart/form-data"),
    "an empty boundary": (PART + END, "multipart/form-data; boundary="),
    "a long boundary": (PART + END, f"multipart/form-data; boundary={'b' * 99}"),
    "no part": (b"x", FORM),
    "an empty body": (b"", FORM),
    "an end": (b"--b--\r\n", FORM),
    "an end too soon": (PART, FORM),
    "a part cut": (PART + b"x", FORM),
    "an end cut": (PART + b"x\r\n--", FORM),
    "another name": (PART.replace(b"zip_file", b"other") + END, FORM),
    "no filename": (PART.replace(b'; filename="x"', b"") + END, FORM),
    "no name": (PART.replace(b"; name", b"; nom") + END, FORM),
    "no header": (PART.replace(b"Content-", b"\xff\xfe-") + END, FORM),
    "a long header": (PART.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 99_999 + b"\r\n\r\n") + END, FORM),
    "parts in a part": (b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--" + END, FORM),
}


@pytest.mark.req("INF-09")
@pytest.mark.parametrize(("body", "kind"), BODIES.values(), ids=BODIES)
async def test_a_body_without_the_file_is_told(
    inference: InferenceServer, native: Api, body: bytes, kind: str | None
) -> None:
    """422 that names the file, nothing stays, and the next request is served."""
    model = await inference.model()
    before = {each["id"] for each in await native.all("/v1/payloads")}
    headers = {"Content-Type": kind} if kind else {}
    path = f"/api/tasks/?model_human_readable_id={model}"
    answer = await inference.public("POST", path, data=body, headers=headers)
    assert answer.must(422).told[0]["loc"] == ["body", "zip_file"]
    assert {each["id"] for each in await native.all("/v1/payloads")} <= before
    (await inference.public("GET", "/")).must(200)


async def test_of_several_files_one_counts(inference: InferenceServer) -> None:
    """The first of its name, whatever lies around it."""
    data = form(packed("first"), "other")
    data.add_field("comment", "no file")
    data.add_field("zip_file", packed(files={"in/a": "1"}), filename="../../x.zip", content_type="text/plain")
    data.add_field("zip_file", b"second", filename="y.zip")
    model = await inference.model()
    made = await inference.public("POST", f"/api/tasks/?model_human_readable_id={model}", data=data)
    assert unpacked((await inference.output(made.must(200).json)).must(200).body)["out/a"] == b"1"


async def test_a_client_that_breaks_off_leaves_nothing(inference: InferenceServer, native: Api) -> None:
    """A body of which half comes makes no task."""
    model = await inference.model()
    tasks = (await inference.private("GET", "/api/tasks/")).json
    before = {each["id"] for each in await native.all("/v1/payloads")}
    base = inference.bases["public"].removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(base[0], int(base[2]))
    head = f"POST /api/tasks/?model_human_readable_id={model} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n"
    writer.write(f"{head}Content-Type: {FORM}\r\n\r\n".encode() + PART + b"x" * 50_000)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    uid = await inference.task(model, packed("true"))
    (await inference.output(uid)).must(200)
    listed = [each for each in (await inference.private("GET", "/api/tasks/")).json if each["uid"] != uid]
    assert listed == tasks
    left = {each["id"] for each in await native.all("/v1/payloads")} - before
    assert len(left) <= 3  # upload, input and output of the one that came


async def test_a_client_that_stops_reading_disturbs_nobody(inference: InferenceServer) -> None:
    """An output whose client goes away half-way is there for the next."""
    script = 'head -c 8000000 /dev/zero > "$HOLOSCAN_OUTPUT_PATH/big"'
    uid = await inference.task(await inference.model(), packed(script))
    (await inference.output(uid)).must(200)
    base = inference.bases["public"].removeprefix("http://").partition(":")
    for _ in range(3):
        reader, writer = await asyncio.open_connection(base[0], int(base[2]))
        writer.write(f"GET /api/tasks/{uid} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readexactly(1000)
        writer.transport.abort()
    assert len(unpacked((await inference.output(uid)).must(200).body)["big"]) == 8_000_000


async def test_what_is_too_large_is_refused(inference: InferenceServer, native: Api) -> None:
    """413 at more than may be uploaded, and nothing stays."""
    model = await inference.model()
    before = {each["id"] for each in await native.all("/v1/payloads")}
    path = f"/api/tasks/?model_human_readable_id={model}"
    answer = await inference.public("POST", path, data=form(bytes(16 * MIB + 1)))
    assert (answer.status, answer.told) == (413, f"at most {16 * MIB} bytes are allowed")
    assert {each["id"] for each in await native.all("/v1/payloads")} <= before


# --- uids and paths ---

ODD = [
    b"%00",
    b"%0A",
    b"%FF",
    b"\xff\xfe",
    b"%ED%A0%80",
    b"%2e%2e",
    b"*",
    b"%2F",
    b"%252F",
    b"'%22$",
    b"x" * 7000,
    b"&&==&%",
]


@pytest.mark.parametrize("listener", ["public", "private"])
@pytest.mark.parametrize(
    "written",
    [pytest.param(each, id=str(number)) for number, each in enumerate(ODD)],
)
async def test_a_uid_that_is_none_is_unknown(inference: InferenceServer, listener: str, written: bytes) -> None:
    """554, or 400 for what is no path at all, and nobody stumbles."""
    status = await inference.raw(listener, b"GET /api/tasks/" + written + b" HTTP/1.1")  # type: ignore[arg-type]
    assert status in {400, 404, UNKNOWN}


@pytest.mark.parametrize("query", [pytest.param(each, id=str(number)) for number, each in enumerate(ODD)])
async def test_a_query_that_is_odd_is_answered(inference: InferenceServer, query: bytes) -> None:
    """Parameters that nobody would send are unknown or wrong, and nobody stumbles."""
    path = b"PUT /api/tasks/?status=1&uid=" + query + b" HTTP/1.1"
    assert await inference.raw("private", path) in {400, 422, UNKNOWN}
    path = b"POST /api/models/?container_tag=x&human_readable_id=" + query + b" HTTP/1.1"
    assert await inference.raw("public", path) in {200, 400, 422}
