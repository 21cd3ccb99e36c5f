"""What the S3 adapter and its movers do when answers get lost, URLs lapse, and servers are away."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from yarl import URL

from gurney import clock
from gurney.errors import Conflict, Forbidden, GurneyError, Invalid, StoreUnavailable, TooLarge
from gurney.model.payload import SignedUpload, WantedParts
from gurney.objects import calls
from gurney.objects.choice import objects_of
from gurney.objects.folder import FolderObjects
from gurney.objects.pieces import Piece
from gurney.objects.port import URL_LIFETIME_S, Digest
from gurney.objects.s3 import S3Objects
from gurney.settings import Settings
from gurney.testing.child import free_port
from gurney.testing.s3 import S3Server, a_bucket
from gurney.transfer import fetch_to, http_parts, open_get, open_put, pooled, put_file
from tests.contract.s3_faults import Way, a_way_to

MIB = 1 << 20
KEY = "pay_x/upl_y"


def store_of(**settings: str) -> S3Objects:
    store = objects_of(Settings(**settings))  # type: ignore[arg-type]
    assert isinstance(store, S3Objects)
    return store


@dataclass
class House:
    """A store whose movers take a way on which requests get lost."""

    objects: S3Objects
    way: Way

    async def put(self, data: bytes, *, said: bool = False) -> Digest:
        """Store the data; `said`: its size is said beforehand."""
        async with open_put(self.objects.sign_put(KEY), self.ask, len(data) if said else None) as put:
            for at in range(0, len(data), 3 * MIB):
                await put.write(data[at : at + 3 * MIB])
                await asyncio.sleep(0)
            return await put.commit()

    async def ask(self, parts: WantedParts | None = None) -> SignedUpload:
        return await self.objects.sign_upload(KEY, parts)

    async def content(self) -> bytes:
        async with open_get(self.objects.sign_get(KEY)) as get:
            return b"".join([chunk async for chunk in get])


@pytest.fixture(
    params=[
        pytest.param("minio", marks=pytest.mark.needs("minio")),
        pytest.param("versitygw", marks=pytest.mark.needs("versitygw")),
    ]
)
async def house(request: pytest.FixtureRequest) -> AsyncIterator[House]:
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    async with a_way_to(server.url) as way:
        objects = store_of(**server.settings(a_bucket()), s3_public_url=way.url)
        await objects.open()
        yield House(objects, way)
        await objects.close()


def digest_of(data: bytes) -> Digest:
    return Digest(len(data), hashlib.sha256(data).hexdigest())


# --- answers that get lost ---


@pytest.mark.parametrize("size", [0, 5, 3 * MIB])
async def test_a_put_whose_answer_was_lost_succeeds(house: House, size: int) -> None:
    """The retry finds the key taken, by its own bytes, and that is success."""
    data = os.urandom(size)
    house.way.fail("PUT", None, "answer lost", "lost")
    assert await house.put(data) == digest_of(data)
    assert house.way.count("PUT") == 3
    assert await house.content() == data


async def test_a_key_taken_by_others_stays_a_conflict(house: House) -> None:
    """Where a retry finds other bytes under the key, the answer that was lost was not of ours."""
    await house.put(b"theirs")
    house.way.fail("PUT", None, "lost")
    with pytest.raises(Conflict, match="written once"):
        await house.put(b"mine!!")
    assert await house.content() == b"theirs"


@pytest.mark.parametrize("said", [True, False])
async def test_parts_whose_answers_were_lost_are_sent_again(house: House, *, said: bool) -> None:
    """Requests for parts may get lost on any side; the object is whole."""
    data = os.urandom(28 * MIB + 7)
    house.way.fail("PUT", "partNumber", "answer lost", "lost", "503", "answer lost")
    assert await house.put(data, said=said) == digest_of(data)
    assert await house.content() == data
    assert await house.objects.sweep(-1) == 0


@pytest.mark.parametrize("fates", [["answer lost"], ["lost", "answer lost", "503"]])
async def test_an_end_of_parts_whose_answer_was_lost_succeeds(house: House, fates: list[str]) -> None:
    """The retry finds no upload, or the key taken: by the same bytes, so that is success."""
    data = os.urandom(9 * MIB)
    house.way.fail("POST", "uploadId", *fates)  # type: ignore[arg-type]
    assert await house.put(data) == digest_of(data)
    assert await house.content() == data


async def test_parts_that_were_swept_away_end_an_upload(house: House) -> None:
    """An upload whose parts are gone fails, says why, and is not tried for long."""
    async with open_put(house.objects.sign_put(KEY), house.ask) as put:
        await put.write(bytes(20 * MIB))
        while house.way.count("PUT", "partNumber") < 2 or house.way.handling:
            await asyncio.sleep(0.01)  # a store may keep an upload that is swept while a part of it comes
        assert await house.objects.sweep(-1) == 1
        with pytest.raises(StoreUnavailable, match="swept away"):
            await put.commit()
    assert await house.objects.stat(KEY) is None


async def test_a_sender_that_stands_still_costs_no_bytes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store loses patience with a part that fills, it gets the part again once all of it is there."""
    monkeypatch.setattr(calls, "REQUEST_S", 0.3)
    monkeypatch.setattr(calls, "PATIENCE_S", 0.1)
    data = os.urandom(20 * MIB)
    async with open_put(house.objects.sign_put(KEY), house.ask, len(data)) as put:
        await put.write(data[: 9 * MIB])
        while house.way.count("PUT", "partNumber") < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
        monkeypatch.undo()
        await put.write(data[9 * MIB :])
        assert await put.commit() == digest_of(data)
    assert await house.content() == data
    assert house.way.count("PUT", "partNumber") == 4


@pytest.mark.parametrize("size", [20 * MIB - 1, 20 * MIB + 1])
async def test_other_than_the_size_that_was_said_is_refused(house: House, size: int) -> None:
    """Who says a size and writes less or more gets an error, and leaves nothing."""

    async def store() -> None:
        async with open_put(house.objects.sign_put(KEY), house.ask, 20 * MIB) as put:
            await put.write(bytes(size))
            await put.commit()

    with pytest.raises(Invalid, match="size that was said"):
        await store()
    assert await house.objects.stat(KEY) is None
    assert await house.objects.sweep(-1) == 0


# --- URLs that lapse ---


async def test_lapsed_urls_are_asked_for_again(house: House) -> None:
    """A refused URL is replaced, once a request, for wholes, parts and their end."""
    house.way.fail("PUT", None, "403")
    await house.put(b"small")
    await house.objects.delete([KEY])
    refused = house.way.fail_each("PUT", "partNumber", "403")
    await house.put(bytes(9 * MIB))
    assert len(refused) > 1
    await house.objects.delete([KEY])
    house.way.fail("POST", "uploadId", "403")
    await house.put(bytes(9 * MIB))
    assert (await house.objects.stat(KEY)) is not None


@pytest.mark.parametrize("size", [5, 9 * MIB])
async def test_an_upload_outlives_its_urls(house: House, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A client may take longer than its URLs live: those that have lapsed are replaced by fresh ones."""
    behind = timedelta(seconds=URL_LIFETIME_S + 1)
    monkeypatch.setattr(house.objects, "_now", lambda: clock.now() - behind)
    url, lapsed = house.objects.sign_put(KEY), [await house.objects.sign_upload(KEY, WantedParts(count=4))]
    monkeypatch.undo()

    async def ask(parts: WantedParts | None = None) -> SignedUpload:
        return lapsed.pop() if parts and lapsed else await house.objects.sign_upload(KEY, parts)

    data = os.urandom(size)
    async with open_put(url, ask) as put:
        await put.write(data)
        await put.commit()
    assert await house.content() == data


async def test_a_put_url_is_of_use_only_with_its_condition(house: House) -> None:
    """Who leaves the condition out, and so could write a second time, is refused."""
    async with pooled() as session:
        for headers in ({}, {"If-None-Match": '"x"'}):
            url = URL(house.objects.sign_put(KEY), encoded=True)
            async with session.put(url, data=b"x", headers=headers) as answer:
                assert answer.status in {400, 403}
        urls = await house.objects.sign_upload(KEY, WantedParts(count=1))
        async with session.post(URL(urls.complete or "", encoded=True), data=b"<x/>") as answer:
            assert answer.status in {400, 403}
    assert await house.objects.stat(KEY) is None


async def test_urls_that_stay_refused_end_an_upload(house: House) -> None:
    """Where fresh URLs are refused, too, the upload ends as `Forbidden`, and leaves nothing."""
    for size in (5, 9 * MIB):
        house.way.fate = lambda request: "403" if request.method == "PUT" else "pass"
        with pytest.raises(Forbidden):
            await house.put(bytes(size))
        assert await house.objects.stat(KEY) is None
        assert await house.objects.sweep(-1) == 0


async def test_pages_of_urls_are_asked_for_as_parts_go_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload of more parts than a page has asks for one page after another, once each."""
    monkeypatch.setattr(http_parts, "_PAGE", 2)
    asked: list[WantedParts | None] = []

    async def ask(parts: WantedParts | None = None) -> SignedUpload:
        asked.append(parts)
        return await house.objects.sign_upload(KEY, parts)

    data = os.urandom(8 * MIB * 5)
    async with open_put(house.objects.sign_put(KEY), ask) as put:
        await put.write(data)
        await put.commit()
    assert await house.content() == data
    assert [parts.first for parts in asked if parts] == [1, 3, 5]


async def test_more_parts_than_there_can_be_are_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has more parts than S3 allows is too large, and leaves nothing."""
    monkeypatch.setattr(http_parts, "MOST_PARTS", 2)
    with pytest.raises(TooLarge):
        await house.put(bytes(8 * MIB * 2 + 1))
    assert await house.objects.sweep(-1) == 0


async def test_without_more_urls_only_what_is_small_goes(house: House) -> None:
    """Who cannot ask gets a clear error before anything large is moved."""
    with pytest.raises(ValueError, match="more than 8 MiB"):
        async with open_put(house.objects.sign_put(KEY)) as put:
            await put.write(bytes(9 * MIB))
    assert house.way.seen == []


# --- downloads that break ---


@pytest.mark.parametrize("size", [3 * MIB, 9 * MIB])
async def test_broken_downloads_go_on_where_they_broke(house: House, tmp_path: Path, size: int) -> None:
    """A connection that breaks again and again costs no byte that had come, and the digest is of the whole."""
    data = os.urandom(size)
    digest = await house.put(data)
    house.way.breaks_after = MIB
    async with open_get(house.objects.sign_get(KEY), expected=digest) as get:
        assert b"".join([chunk async for chunk in get]) == data
    assert house.way.count("GET") == size // MIB
    await fetch_to(house.objects.sign_get(KEY), tmp_path / "copy", digest)
    assert (tmp_path / "copy").read_bytes() == data


# --- servers that are away ---


@pytest.mark.needs("minio")
async def test_a_server_that_is_killed_under_an_upload_costs_nothing(own_minio: S3Server, tmp_path: Path) -> None:
    """While MinIO is killed and started again, uploads and downloads wait and then go on."""
    objects = store_of(**own_minio.settings())
    await objects.open()
    source = tmp_path / "source"
    data = os.urandom(70 * MIB)
    source.write_bytes(data)

    async def crash() -> None:
        await asyncio.to_thread(own_minio.kill)
        await asyncio.to_thread(own_minio.start)

    async with open_put(objects.sign_put(KEY), partial(objects.sign_upload, KEY)) as put:
        await put.write(data[: 30 * MIB])
        crashing = asyncio.create_task(crash())
        await put.write(data[30 * MIB :])
        await crashing
        digest = await put.commit()
    assert digest == digest_of(data)
    async with open_get(objects.sign_get(KEY), expected=digest) as get:
        chunks = aiter(get)
        got = len(await anext(chunks))
        crashing = asyncio.create_task(crash())
        got += sum([len(chunk) async for chunk in chunks])
    await crashing
    assert got == len(data)
    assert await put_file(source, objects.sign_put("pay_x/upl_z"), partial(objects.sign_upload, "pay_x/upl_z"))
    await objects.close()


@pytest.mark.needs("minio")
async def test_parts_of_before_a_restart_are_given_up_by_their_key(own_minio: S3Server) -> None:
    """A restarted MinIO lists its uploads by exact key only: what is given up by key is gone all the same."""
    objects = store_of(**own_minio.settings())
    await objects.open()
    upload = (await objects.sign_upload(KEY, WantedParts(count=1))).upload
    await asyncio.to_thread(own_minio.kill)
    await asyncio.to_thread(own_minio.start)
    assert [each.id async for each in objects._uploads(KEY)] == [upload]
    await objects.give_up([KEY])
    assert [each.id async for each in objects._uploads(KEY)] == []
    await objects.close()


@pytest.mark.needs("minio")
async def test_a_server_that_is_away_is_told_and_comes_back(
    own_minio: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server is away everything fails in bounded time with one line that names it; then all works again."""
    monkeypatch.setattr(calls, "PATIENCE_S", 0.3)
    objects = store_of(**own_minio.settings())
    await objects.open()
    ask = partial(objects.sign_upload, KEY)
    await asyncio.to_thread(own_minio.stop)
    told = []
    for what in (
        objects.stat(KEY), objects.delete([KEY]), objects.give_up([KEY]), anext(objects.list()), objects.sweep(0),
        ask(WantedParts(count=1)), put_bytes(objects.sign_put(KEY), b"x"), get_bytes(objects.sign_get(KEY)),
        store_of(**own_minio.settings()).open(),
    ):  # fmt: skip
        with pytest.raises(StoreUnavailable) as caught:
            await what
        told.append(str(caught.value))
    assert all(str(own_minio.port) in text and "\n" not in text and len(text) < 200 for text in told), told
    assert not any("Signature" in text for text in told)
    await asyncio.to_thread(own_minio.start)
    await put_bytes(objects.sign_put(KEY), b"x")
    assert await objects.stat(KEY)
    await objects.delete([KEY])
    await objects.close()


async def put_bytes(url: str, data: bytes) -> None:
    async with open_put(url) as put:
        await put.write(data)
        await put.commit()


async def get_bytes(url: str) -> bytes:
    async with open_get(url) as get:
        return b"".join([chunk async for chunk in get])


@pytest.mark.needs("minio")
async def test_a_frozen_server_is_not_waited_for_for_ever(own_minio: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and never answers ends a request in bounded time."""
    monkeypatch.setattr(calls, "PATIENCE_S", 0.3)
    monkeypatch.setattr(calls, "REQUEST_S", 0.5)
    objects = store_of(**own_minio.settings())
    await objects.open()
    await asyncio.to_thread(own_minio.pause)
    for what in (objects.stat(KEY), put_bytes(objects.sign_put(KEY), bytes(8 * MIB))):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await what
    await asyncio.to_thread(own_minio.resume)
    assert await objects.stat(KEY) is None
    await objects.close()


async def test_what_a_server_refuses_early_is_not_sent_on() -> None:
    """The connection breaks: closed in order it would stay until a server that does not want it had read all."""
    broken = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        with suppress(OSError):
            while True:
                await asyncio.sleep(0.01)
                writer.write(b" ")
                await writer.drain()
        broken.set()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, pooled() as session, asyncio.timeout(20):
        with pytest.raises(Forbidden):
            await calls.call(session, "PUT", f"http://{host}:{port}/x", body=Piece.of([bytes(32 * MIB)]))
        await broken.wait()


# --- wrong settings ---


@pytest.mark.needs("minio")
@pytest.mark.parametrize("wrong", [{"s3_secret_key": "wrong secret"}, {"s3_access_key": "nobody"}])
async def test_wrong_credentials_are_told_at_once(minio_server: S3Server, wrong: dict[str, str]) -> None:
    """The line names server, account and bucket, and not the secret."""
    store = store_of(**(minio_server.settings(a_bucket()) | wrong))
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable, match="refuses s3_access_key") as caught:
            await store.open()
    assert minio_server.url in str(caught.value)
    assert "wrong secret" not in str(caught.value)


async def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says where nobody listens."""
    monkeypatch.setattr(calls, "PATIENCE_S", 0.3)
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailable, match=f"{url} is not there: .*refused"):
        await store_of(s3_url=url, s3_access_key="a", s3_secret_key="b").open()


@pytest.mark.needs("minio")
async def test_a_bucket_that_cannot_be_made_is_told(minio_server: S3Server) -> None:
    """A name that the server does not take is told with the server's reason."""
    store = store_of(**minio_server.settings("192.168.1.1"))
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable, match=r"192\.168\.1\.1") as caught:
            await store.open()
    assert "\n" not in str(caught.value)


@pytest.mark.needs("minio")
async def test_a_bucket_that_goes_is_told(minio_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its bucket a store is away, and not empty."""
    monkeypatch.setattr(calls, "PATIENCE_S", 0.2)
    objects = store_of(**minio_server.settings(a_bucket()))
    await objects.open()
    await asyncio.to_thread(objects._sdk.remove_bucket, objects._account.bucket)
    for what in (put_bytes(objects.sign_put(KEY), b"x"), get_bytes(objects.sign_get(KEY)), anext(objects.list())):
        with pytest.raises(StoreUnavailable, match="bucket"):
            await what
    await objects.close()


def test_settings_choose_the_store() -> None:
    """Without `s3_url` a folder; with it an S3 server, which needs both keys."""
    assert isinstance(objects_of(Settings()), FolderObjects)
    for keys in ({}, {"s3_access_key": "a"}, {"s3_secret_key": "b"}):
        with pytest.raises(GurneyError, match="s3_secret_key"):
            objects_of(Settings(s3_url="http://s3.test", **keys))  # type: ignore[arg-type]
    assert "s3cr3t" not in repr(Settings(s3_url="http://s3.test", s3_access_key="a", s3_secret_key="s3cr3t"))


@pytest.mark.parametrize(
    ("address", "signed"),
    [
        ("http://S3.test:80/", "http://s3.test/"),
        ("https://s3.test:443", "https://s3.test/"),
        ("https://s3.test:8443", "https://s3.test:8443/"),
    ],
)
async def test_urls_name_the_host_as_clients_send_it(address: str, signed: str) -> None:
    """A port that goes without saying is left out: HTTP clients leave it out of the header that is signed."""
    from gurney.clock import now
    from gurney.objects.s3_account import Account
    from gurney.objects.sigv4 import Credentials

    account = Account("http://internal:9000", "gurney", Credentials("a", "b", "us-east-1"), address)
    assert account.url("GET", KEY, at=now(), lifetime_s=900).startswith(f"{signed}gurney/{KEY}?")
    assert account.url("GET", KEY, at=now(), lifetime_s=900, internal=True).startswith("http://internal:9000/gurney/")
