"""The contract of the port `objects`, over every adapter of it."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from gurney import clock
from gurney.errors import Conflict, Forbidden, IntegrityError, NotFound, RangeNotSatisfiable, StoreUnavailable
from gurney.model.payload import SignedUpload, WantedParts
from gurney.objects.choice import objects_of
from gurney.objects.port import URL_LIFETIME_S, Digest, Objects
from gurney.settings import Settings
from gurney.testing.s3 import a_bucket
from gurney.transfer import Ask, fetch_to, open_get, open_put, put_file

MIB = 1 << 20
#: Opens one more adapter on the same store; its clock is behind by so much.
OpenMore = Callable[[timedelta], Objects]

WRITER = """
import asyncio, sys
from gurney.model.payload import SignedUpload
from gurney.transfer import open_put

async def main():
    urls = SignedUpload.decode(sys.argv[1].encode())

    async def ask(parts=None):
        return urls

    async with open_put(urls.put, ask) as put:
        for _ in range(40):
            await put.write(bytes(1 << 20))
        print("half", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(
    params=[
        "folder",
        pytest.param("minio", marks=pytest.mark.needs("minio")),
        pytest.param("versitygw", marks=pytest.mark.needs("versitygw")),
    ]
)
def open_more(request: pytest.FixtureRequest, tmp_path: Path) -> OpenMore:
    """Each adapter on an empty store."""
    settings: dict[str, str] = {}
    if request.param != "folder":
        settings = request.getfixturevalue(f"{request.param}_server").settings(a_bucket())

    def make(behind: timedelta = timedelta()) -> Objects:
        store = objects_of(Settings(data=tmp_path / "a store", **settings))  # type: ignore[arg-type]
        store._now = lambda: clock.now() - behind  # type: ignore[attr-defined]
        return store

    return make


@pytest.fixture
async def objects(open_more: OpenMore) -> AsyncIterator[Objects]:
    store = open_more(timedelta())
    await store.open()
    yield store
    await store.close()


async def put(objects: Objects, key: str, data: bytes) -> Digest:
    async with open_put(objects.sign_put(key), asks(objects, key)) as upload:
        await upload.write(data)
        return await upload.commit()


def asks(objects: Objects, key: str) -> Ask:
    """Return what asks the store itself, where a mover asks its owner."""
    return partial(objects.sign_upload, key)


async def begun(objects: Objects, key: str) -> SignedUpload:
    """Return the URLs of an upload that has begun, in parts where the store has them."""
    try:
        return await objects.sign_upload(key, WantedParts(count=32))
    except Conflict:
        return await objects.sign_upload(key)


async def put_to(url: str, data: bytes) -> None:
    async with open_put(url) as upload:
        await upload.write(data)
        await upload.commit()


async def get(url: str) -> bytes:
    async with open_get(url) as download:
        return b"".join([chunk async for chunk in download])


async def keys(objects: Objects, prefix: str = "") -> set[str]:
    return {info.key async for info in objects.list(prefix)}


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 8 * MIB, 8 * MIB + 1, 24 * MIB, 33 * MIB + 5])
async def test_bytes_come_back_as_they_went_in(objects: Objects, size: int) -> None:
    """What is read is what was written, and the digest is of it, at any size."""
    data = os.urandom(size)
    digest = await put(objects, "pay_x/upl_y", data)
    assert digest == Digest(size, hashlib.sha256(data).hexdigest())
    assert await get(objects.sign_get("pay_x/upl_y")) == data
    info = await objects.stat("pay_x/upl_y")
    assert info is not None
    assert (info.key, info.size) == ("pay_x/upl_y", size)
    assert abs(info.modified_at - clock.now()) < timedelta(minutes=1)


@pytest.mark.parametrize("size", [3, 3 * MIB, 20 * MIB])
async def test_a_key_is_written_once(objects: Objects, size: int) -> None:
    """A second PUT of a key is refused and changes nothing."""
    await put(objects, "pay_x/upl_y", b"first")
    with pytest.raises(Conflict, match="written once"):
        await put(objects, "pay_x/upl_y", bytes(size))
    assert await get(objects.sign_get("pay_x/upl_y")) == b"first"


@pytest.mark.parametrize("size", [3, 3 * MIB, 9 * MIB])
async def test_of_concurrent_puts_one_wins(objects: Objects, size: int) -> None:
    """Of several PUTs of one key at once exactly one succeeds, its bytes are the object, the others leave nothing."""
    bodies = [bytes([number]) * size for number in range(8)]
    puts = (put(objects, "pay_x/upl_y", body) for body in bodies)
    results = await asyncio.gather(*puts, return_exceptions=True)
    won = [body for body, result in zip(bodies, results, strict=True) if isinstance(result, Digest)]
    assert len(won) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 7
    assert await get(objects.sign_get("pay_x/upl_y")) == won[0]
    assert await objects.sweep(-1) == 0


async def test_expired_urls_are_refused(objects: Objects, open_more: OpenMore) -> None:
    """A URL does nothing once its time is over."""
    await put(objects, "pay_x/upl_y", b"data")
    behind = open_more(timedelta(seconds=URL_LIFETIME_S + 1))
    await behind.open()
    with pytest.raises(Forbidden):
        await put_to(behind.sign_put("pay_x/upl_z"), b"data")
    with pytest.raises(Forbidden):
        await get(behind.sign_get("pay_x/upl_y"))
    await behind.close()
    assert await keys(objects) == {"pay_x/upl_y"}


async def test_urls_last_as_long_as_promised(objects: Objects, open_more: OpenMore) -> None:
    """A URL works until shortly before its end."""
    await put(objects, "pay_x/upl_y", b"data")
    behind = open_more(timedelta(seconds=URL_LIFETIME_S - 30))
    await behind.open()
    assert await get(behind.sign_get("pay_x/upl_y")) == b"data"
    await behind.close()


@pytest.mark.parametrize("verb", ["put", "get"])
async def test_forged_urls_are_refused(objects: Objects, verb: str) -> None:
    """A URL that was signed for another key does not open this one."""
    await put(objects, "pay_x/upl_y", b"data")
    url = objects.sign_put("pay_x/upl_a") if verb == "put" else objects.sign_get("pay_x/upl_y")
    forged = url.replace("upl_a", "upl_b").replace("upl_y", "upl_a")
    with pytest.raises(Forbidden):
        await (put_to(forged, b"x") if verb == "put" else get(forged))
    assert await keys(objects) == {"pay_x/upl_y"}


async def test_urls_are_for_one_verb(objects: Objects) -> None:
    """A URL to read does not write and a URL to write does not read."""
    await put(objects, "pay_x/upl_y", b"data")
    with pytest.raises(Forbidden):
        await put_to(objects.sign_get("pay_x/upl_z"), b"x")
    with pytest.raises(Forbidden):
        await get(objects.sign_put("pay_x/upl_y"))
    assert await keys(objects) == {"pay_x/upl_y"}


async def test_what_is_not_there_is_not_found(objects: Objects) -> None:
    """A GET of an unknown key is `NotFound`, its stat None."""
    with pytest.raises(NotFound):
        await get(objects.sign_get("pay_x/upl_y"))
    assert await objects.stat("pay_x/upl_y") is None


@pytest.mark.parametrize("size", [3, 3 * MIB, 40 * MIB])
async def test_abandoned_puts_leave_nothing(objects: Objects, size: int) -> None:
    """A PUT that is left without commit shows nothing and leaves nothing to sweep."""
    async with open_put(objects.sign_put("pay_x/upl_y"), asks(objects, "pay_x/upl_y")) as upload:
        await upload.write(bytes(size))
    assert await objects.stat("pay_x/upl_y") is None
    assert await keys(objects) == set()
    assert await objects.sweep(-1) == 0


async def test_killed_writers_leave_nothing_visible(objects: Objects) -> None:
    """A writer that is killed in the middle leaves nothing under the key, and `sweep` removes its rest."""
    urls = (await begun(objects, "pay_x/upl_y")).encode().decode()
    command = [sys.executable, "-c", WRITER, urls]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:  # noqa: ASYNC220
        assert writer.stdout is not None
        assert await asyncio.to_thread(writer.stdout.readline) == b"half\n"
        writer.send_signal(signal.SIGKILL)
        await asyncio.to_thread(writer.wait)
    assert await objects.stat("pay_x/upl_y") is None
    assert await keys(objects) == set()
    assert await objects.sweep(3600) == 0
    assert await objects.sweep(-1) == 1
    assert await objects.sweep(-1) == 0
    await put(objects, "pay_x/upl_y", b"second try")


async def test_sweep_spares_objects(objects: Objects) -> None:
    """`sweep` removes no object, however old."""
    await put(objects, "pay_x/upl_y", b"data")
    assert await objects.sweep(-1) == 0
    assert await get(objects.sign_get("pay_x/upl_y")) == b"data"


async def test_deletes_are_idempotent(objects: Objects) -> None:
    """What was deleted is gone, deleting it again is no error, and others stay."""
    for name in ("upl_1", "upl_2", "upl_3"):
        await put(objects, f"pay_x/{name}", b"data")
    for _ in range(2):
        await objects.delete(["pay_x/upl_1", "pay_x/upl_2", "pay_z/upl_1"])
    assert await keys(objects) == {"pay_x/upl_3"}
    with pytest.raises(NotFound):
        await get(objects.sign_get("pay_x/upl_1"))


async def test_what_is_given_up_leaves_nothing(objects: Objects) -> None:
    """`give_up` removes objects and the parts of uploads under these keys, whoever is at them, and no others."""
    await put(objects, "pay_x/upl_1", b"data")
    await put(objects, "pay_x/upl_2", b"data")
    async with open_put(objects.sign_put("pay_x/upl_3"), asks(objects, "pay_x/upl_3")) as upload:
        await upload.write(bytes(40 * MIB))
        async with open_put(objects.sign_put("pay_x/upl_33"), asks(objects, "pay_x/upl_33")) as other:
            await other.write(bytes(40 * MIB))
            for _ in range(2):
                await objects.give_up(["pay_x/upl_1", "pay_x/upl_3", "pay_x/upl_4"])
            await other.commit()
        with suppress(StoreUnavailable):  # a folder keeps what is under way until it is swept
            await upload.commit()
            await objects.give_up(["pay_x/upl_3"])
        assert await keys(objects) == {"pay_x/upl_2", "pay_x/upl_33"}
    assert await objects.sweep(-1) == 0


@pytest.mark.parametrize("size", [0, 1, 5 * MIB + 3])
async def test_ranges(objects: Objects, size: int) -> None:
    """Any range gives its bytes and the size of the whole; one that begins beyond the end is refused."""
    data = os.urandom(size)
    await put(objects, "pay_x/upl_y", data)
    url = objects.sign_get("pay_x/upl_y")
    ranges = [(0, 0), (0, 1), (0, None), (size // 2, None), (size // 2, 3), (size, None), (size, 5), (0, size + 9)]
    for offset, length in ranges:
        async with open_get(url, offset, length) as download:
            assert download.size == size
            end = size if length is None else offset + length
            assert b"".join([chunk async for chunk in download]) == data[offset:end]
    with pytest.raises(RangeNotSatisfiable):
        async with open_get(url, size + 1):
            pytest.fail("it opened")


@pytest.mark.parametrize("size", [0, 3, 9 * MIB, 130 * MIB + 1])
async def test_files_come_back_as_they_went_in(objects: Objects, tmp_path: Path, size: int) -> None:
    """A local file that was stored comes back the same, under a path whose folders are made."""
    source, copy = tmp_path / "source", tmp_path / "a" / "b" / "copy"
    data = os.urandom(size)
    source.write_bytes(data)
    digest = await put_file(source, objects.sign_put("pay_x/upl_y"), asks(objects, "pay_x/upl_y"))
    assert digest == Digest(size, hashlib.sha256(data).hexdigest())
    await fetch_to(objects.sign_get("pay_x/upl_y"), copy, digest, 0o440)
    assert copy.read_bytes() == data
    assert copy.stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize("size", [3, 9 * MIB, 130 * MIB + 1])
async def test_files_that_are_not_what_was_expected_are_not_there(objects: Objects, tmp_path: Path, size: int) -> None:
    """Where a stored file differs from its digest, in its bytes or its size, none is left at the path."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(bytes(size))
    digest = await put_file(source, objects.sign_put("pay_x/upl_y"), asks(objects, "pay_x/upl_y"))
    for wrong in (Digest(size, "0" * 64), Digest(size + 1, digest.sha256)):
        with pytest.raises(IntegrityError):
            await fetch_to(objects.sign_get("pay_x/upl_y"), copy, wrong)
        assert not copy.exists()


async def test_verified_reads_hold_the_end_back(objects: Objects) -> None:
    """Where the digest differs, a reader never gets the whole."""
    digest = await put(objects, "pay_x/upl_y", bytes(9 * MIB))
    got = 0

    async def read() -> None:
        nonlocal got
        wrong = Digest(digest.size, "0" * 64)
        async with open_get(objects.sign_get("pay_x/upl_y"), expected=wrong) as download:
            async for chunk in download:
                got += len(chunk)

    with pytest.raises(IntegrityError):
        await read()
    assert got < digest.size


async def test_readers_that_have_begun_may_read_on(objects: Objects) -> None:
    """A delete does not break a download under way, nor does it wait for it."""
    await put(objects, "pay_x/upl_y", bytes(9 * MIB))
    async with open_get(objects.sign_get("pay_x/upl_y")) as download:
        await objects.delete(["pay_x/upl_y"])
        with suppress(NotFound):  # a store may drop it under way, but never hand out half as a whole
            assert sum([len(chunk) async for chunk in download]) == 9 * MIB


async def test_lists_by_prefix(objects: Objects) -> None:
    """`list` tells every object whose key begins with the prefix, with its size, and no other."""
    made = {f"pay_{owner}/upl_{number}": owner for owner in (1, 2, 12) for number in range(3)}
    for key, size in made.items():
        await put(objects, key, bytes(size))
    for prefix in ("", "pay_1", "pay_1/", "pay_1/upl_2", "pay_3/", "x"):
        listed = [info async for info in objects.list(prefix)]
        assert {info.key: info.size for info in listed} == {k: s for k, s in made.items() if k.startswith(prefix)}
        assert len(listed) == len({info.key for info in listed})


async def test_puts_survive_deletes_beside_them(objects: Objects) -> None:
    """Deleting the last object of an owner does not break a PUT for the same owner."""

    async def churn(lane: int) -> None:
        for number in range(40):
            key = f"pay_x/upl_{lane}-{number}"
            await put(objects, key, b"data")
            await objects.delete([key])

    await asyncio.gather(*(churn(lane) for lane in range(8)))
    assert await keys(objects) == set()


async def test_two_adapters_share_a_store(objects: Objects, open_more: OpenMore) -> None:
    """What one adapter signs and writes, another on the same store reads, also after a restart."""
    await put(objects, "pay_x/upl_y", b"data")
    signed_before = objects.sign_get("pay_x/upl_y")
    other = open_more(timedelta())
    await other.open()
    assert await get(other.sign_get("pay_x/upl_y")) == b"data"
    assert await get(signed_before) == b"data"
    await other.close()


@pytest.mark.parametrize(
    "key", ["", "x", "/x", "x/", "../x", "x/..", "x/y/z", "x/y.z", "x/ y", "-/y", "x/y\n", "x\0/y"]
)
async def test_keys_have_one_form(objects: Objects, key: str) -> None:
    """What is no `<owner>/<name>` is a mistake of the caller, before anything happens."""
    with pytest.raises(ValueError, match="not an object key"):
        objects.sign_put(key)
    with pytest.raises(ValueError, match="not an object key"):
        await objects.stat(key)


async def test_closed_stores_sign_nothing(open_more: OpenMore) -> None:
    """Before `open` and after `close` nothing is signed."""
    store = open_more(timedelta())
    with pytest.raises(StoreUnavailable):
        store.sign_get("pay_x/upl_y")
    await store.open()
    store.sign_get("pay_x/upl_y")
    await store.close()
    with pytest.raises(StoreUnavailable):
        store.sign_get("pay_x/upl_y")
