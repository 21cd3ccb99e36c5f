"""Archives through the edge: a zip or tar becomes a payload or nothing; a payload and results go out as one."""

import io
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientError

from gurney.archive import Member
from gurney.errors import StoreUnavailable, Unavailable
from gurney.model.access import Role
from gurney.model.job import JobState
from gurney.testing.nats import NatsServer
from services.edge.unpacking import BATCH, BATCH_BYTES, batches
from tests.service.edge_house import House, house

pytestmark = pytest.mark.timeout(60)
ZIP, TAR = "application/zip", "application/x-tar"
LARGE = bytes(range(256)) * 6_000
FILES = {"a/1.txt": b"one", "a/2.bin": LARGE, "b": b"", "ä.dcm": b"umlaut"} | {f"many/{n}": b"x" for n in range(20)}


@pytest.fixture
async def home(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    async with house(nats_server.url, tmp_path, max_upload=8 << 20, max_archive_files=300) as built:
        yield built


def zipped(files: dict[str, bytes], folders: tuple[str, ...] = ()) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        for path in folders:
            archive.mkdir(path)
    return out.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


async def post(home: House, body: Any, kind: str, query: str = "", **headers: str) -> tuple[int, dict[str, Any]]:
    headers |= {"Content-Type": kind}
    async with home.request("POST", f"/v1/payloads{query}", data=body, headers=headers) as response:
        return response.status, await response.json()


async def contents(home: House, payload: str) -> dict[str, bytes]:
    return {
        path: (await home.get(f"/v1/payloads/{payload}/files/{quote(path)}"))[1]
        for path in home.payloads.files[payload]
    }


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (zipped(FILES), ZIP),
        (zipped(FILES), "application/x-zip-compressed"),
        (tarred(FILES), TAR),
        (tarred(FILES, "w:gz"), "application/gzip"),
        (tarred(FILES, "w:gz"), TAR),
    ],
)
async def test_an_archive_becomes_a_payload(home: House, body: bytes, kind: str) -> None:
    """201 with the payload, named and labelled by the query, with every file as it was."""
    status, payload = await post(home, body, kind, "?name=ct&label=site=a&label=b=c%3Dd&keep=true")
    assert (status, payload["name"], payload["keep"]) == (201, "ct", True)
    assert payload["labels"] == {"site": "a", "b": "c=d"}
    assert payload["files"] == len(FILES)
    assert await contents(home, payload["id"]) == FILES
    assert not home.payloads.pending
    assert not list((home.settings.data / "spool").iterdir())


async def test_empty_folders_come_along(home: House) -> None:
    """An empty folder of the archive is one of the payload."""
    _, payload = await post(home, zipped({"x/y": b"1"}, ("x", "empty")), ZIP)
    assert set(home.payloads.files[payload["id"]]) == {"x/y", "empty/"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (zipped({"ok": b"1", "../evil": b"2"}), "evil"),
        (zipped({"ok": b"1"})[:-30], "not a sound"),
        (tarred({"ok": b"1"})[:600], "unexpected end"),
        (b"rubbish", "not a sound"),
        (b"", "not a sound"),
        (zipped({f"{n}": b"" for n in range(301)}), "more than 300"),
        (zipped({"bomb": bytes(9 << 20)}), "bomb"),
    ],
    ids=["path", "cut zip", "cut tar", "rubbish", "empty", "too many", "too large unpacked"],
)
async def test_a_bad_archive_leaves_nothing(home: House, body: bytes, named: str) -> None:
    """What is broken, evil or too much is 422 that says what; no payload was made and no byte stays."""
    status, problem = await post(home, body, ZIP)
    assert (status, problem["errors"][0]["field"]) == (422, "body")
    assert named in problem["detail"]
    assert not home.payloads.payloads
    assert not list((home.settings.data / "spool").iterdir())


async def test_refusals(home: House) -> None:
    """Too large is 413, another type 415, a bad query 422; an archive's name that is taken 409; nothing is made."""
    assert (await post(home, bytes(9 << 20), ZIP))[0] == 413
    assert (await post(home, b"x", "text/plain"))[0] == 415
    assert (await post(home, zipped({"a": b""}), ZIP, "?label=x"))[0] == 422
    assert (await post(home, zipped({"a": b""}), ZIP, f"?label={'k' * 64}=x"))[0] == 422
    assert (await post(home, b"{}", "application/json", "?name=x"))[1]["errors"][0]["field"] == "name"
    home.payloads.add(name="ct")
    assert (await post(home, zipped({"a": b""}), ZIP, "?name=ct"))[0] == 409
    assert len(home.payloads.payloads) == 1


async def test_a_fault_in_the_middle_takes_the_payload_back(home: House) -> None:
    """When storing fails, the client hears it and the payload that was begun is gone."""
    calls = 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise StoreUnavailable("full")

    home.payloads.on_commit = fail
    status, problem = await post(home, zipped(FILES), ZIP)
    assert (status, problem["code"], calls) == (503, "store_unavailable", 1)
    assert not home.payloads.payloads
    assert not home.payloads.pending


async def test_a_repeated_archive_is_made_once(home: House) -> None:
    """The same key answers with the same payload as it is now, into which nothing is put again."""
    status, first = await post(home, zipped(FILES), ZIP, **{"Idempotency-Key": "k"})
    assert status == 201
    del home.payloads.files[first["id"]]["a/2.bin"]
    kept = dict(home.payloads.files[first["id"]])
    status, again = await post(home, zipped(FILES), ZIP, **{"Idempotency-Key": "k"})
    assert (status, again["id"], len(home.payloads.payloads)) == (201, first["id"], 1)
    assert home.payloads.files[first["id"]] == kept


async def test_a_payload_is_opened_when_all_of_the_archive_is_in(home: House) -> None:
    """While files come it is being filled; what the client hears of is open."""
    states: list[str] = []

    async def look() -> None:
        states.extend(payload.state for payload in home.payloads.payloads.values())

    home.payloads.on_commit = look
    files = {f"{n}": b"x" for n in range(BATCH + 1)}
    _, payload = await post(home, zipped(files), ZIP)
    assert states == ["filling", "filling"]
    assert (payload["state"], payload["files"]) == ("open", len(files))


async def test_what_was_opened_stays_when_the_answer_is_lost(home: House) -> None:
    """The client is told to try again, and then gets the payload, whole."""

    async def fail() -> None:
        home.payloads.on_open = None
        raise Unavailable("no answer")

    home.payloads.on_open = fail
    assert (await post(home, zipped(FILES), ZIP, **{"Idempotency-Key": "k"}))[0] == 503
    (made,) = home.payloads.payloads
    status, again = await post(home, zipped(FILES), ZIP, **{"Idempotency-Key": "k"})
    assert (status, again["id"], again["files"]) == (201, made, len(FILES))


async def test_a_payload_whose_filling_was_given_up_is_a_conflict(home: House) -> None:
    """Where the owner let it go meanwhile, the client hears that, not that a path was not found."""

    async def forget() -> None:
        home.payloads.payloads.clear()

    home.payloads.on_commit = forget
    assert (await post(home, zipped({f"{n}": b"x" for n in range(5)}), ZIP))[0] == 409


async def test_a_payload_goes_out_as_a_zip_or_tar(home: House) -> None:
    """Zip by default, tar where `Accept` says so, with every file and empty folder, saved under the payload's name."""
    payload = home.payloads.add(name="ct ä").id
    for path, content in (FILES | {"empty/": b""}).items():
        assert (await home.put(payload, quote(path), content))[0] == 201
    status, body, headers = await home.get(f"/v1/payloads/{payload}/archive")
    assert (status, headers["Content-Type"]) == (200, ZIP)
    assert headers["Content-Disposition"] == "attachment; filename=\"ct _.zip\"; filename*=UTF-8''ct%20%C3%A4.zip"
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES | {"empty/": b""}
    _, body, headers = await home.get(f"/v1/payloads/{payload}/archive", headers={"Accept": TAR})
    assert headers["Content-Type"] == TAR
    with tarfile.open(fileobj=io.BytesIO(body)) as packed:
        found = {each.name: packed.extractfile(each).read() for each in packed if each.isfile()}  # type: ignore[union-attr]
        assert found == FILES
        assert packed.getmember("empty").isdir()


async def test_an_archive_of_altered_bytes_breaks_off(home: House) -> None:
    """A file that is not what was stored breaks the connection, so that no client keeps the archive."""
    payload = home.payloads.add().id
    await home.put(payload, "a", LARGE)
    await home.put(payload, "b", LARGE)
    key = home.payloads.files[payload]["b"][1]
    (stored,) = (home.settings.data / "objects").glob(f"objects/*/{key}")
    stored.chmod(0o600)
    stored.write_bytes(LARGE[:-1] + b"!")
    with pytest.raises(ClientError):
        await home.get(f"/v1/payloads/{payload}/archive")


async def test_a_file_removed_while_the_archive_is_made_is_left_out(home: House) -> None:
    """Files that go between list and read are missing in the archive, which is whole otherwise."""
    payload = home.payloads.add().id
    for path in ("a", "b", "c"):
        await home.put(payload, path, b"1")
    home.payloads.on_list = lambda: home.payloads.files[payload].pop("b", None)
    _, body, _ = await home.get(f"/v1/payloads/{payload}/archive")
    assert zipfile.ZipFile(io.BytesIO(body)).namelist() == ["a", "c"]


async def test_results(home: House) -> None:
    """Results come as an archive or one by one once the job has ended; before 409, without results empty or 404."""
    results = home.payloads.add().id
    await home.put(results, "seg/out.dcm", b"dicom")
    job = home.jobs.add()
    for part in ("results", "results/seg/out.dcm"):
        status, body, _ = await home.get(f"/v1/jobs/{job.id}/{part}")
        assert (status, b"job_not_finished" in body) == (409, True)
    await home.jobs.end(job, results=results)
    status, body, _ = await home.get(f"/v1/jobs/{job.id}/results")
    assert (status, zipfile.ZipFile(io.BytesIO(body)).read("seg/out.dcm")) == (200, b"dicom")
    for path in ("seg/out.dcm", "seg%2Fout.dcm"):
        assert (await home.get(f"/v1/jobs/{job.id}/results/{path}"))[:2] == (200, b"dicom")
    got = await home.get(f"/v1/jobs/{job.id}/results/seg/out.dcm", headers={"Range": "bytes=1-2"})
    assert got[:2] == (206, b"ic")
    assert (await home.get(f"/v1/jobs/{job.id}/results/none"))[0] == 404
    assert (await home.get(f"/v1/jobs/{job.id}/results/../x"))[0] == 422
    empty = home.jobs.add(state=JobState.SUCCEEDED)
    status, body, _ = await home.get(f"/v1/jobs/{empty.id}/results")
    assert (status, zipfile.ZipFile(io.BytesIO(body)).namelist()) == (200, [])
    assert (await home.get(f"/v1/jobs/{empty.id}/results/x"))[0] == 404
    clinician = await home.token(Role.CLINICIAN, "ann")
    assert (await home.get(f"/v1/jobs/{job.id}/results", token=clinician))[0] == 404


def test_batches_are_bounded_by_files_and_bytes() -> None:
    """No batch has too many files or bytes, unless one file alone has; none is lost and the order stays."""
    members = [Member(str(n), BATCH_BYTES // 3 if n % 7 else BATCH_BYTES * 2) for n in range(50)]
    members += [Member(f"s{n}", 1) for n in range(600)]
    cut = list(batches(members))
    assert [member for batch in cut for member in batch] == members
    for batch in cut:
        assert len(batch) <= BATCH
        assert len(batch) == 1 or sum(member.size for member in batch) <= BATCH_BYTES
