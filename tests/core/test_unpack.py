"""Archives come in with distrust: all is well, or `Invalid` before anything is handed out."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gurney.archive import Limits, unpack
from gurney.errors import Invalid

MIB = 1 << 20
Files = dict[str, bytes]
Pack = Callable[[Files], bytes]


async def joined(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def unpacked(file: Path, limits: Limits | None = None) -> Files:
    async with unpack(file, limits) as archive:
        found = {member.path: await joined(chunks) async for member, chunks in archive}
        assert [(member.path, member.size) for member in archive.members] == [(p, len(d)) for p, d in found.items()]
        return found


def packed_zip(files: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


def packed_tar(files: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


PACKS: dict[str, Pack] = {
    "zip": lambda files: packed_zip(files.items()),
    "tar": lambda files: packed_tar(files.items()),
    "tar.gz": lambda files: gzip.compress(packed_tar(files.items())),
}


@pytest.fixture(params=PACKS)
def pack(request: pytest.FixtureRequest) -> Pack:
    return PACKS[request.param]


@pytest.fixture
def spool(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "spooled"
        path.write_bytes(data)
        return path

    return write


FILES: Files = {
    "a/b.dcm": os.urandom(3 * MIB + 17),
    "empty": b"",
    "a/" + "long/" * 60 + "name": b"deep",
    "größe/\u8103.nii": bytes(100_000),
    "none/": b"",
    **{f"many/{number}": str(number).encode() * number for number in range(300)},
}


async def test_archives_unpack(pack: Pack, spool: Callable[[bytes], Path]) -> None:
    """Every file comes out with its bytes, and an empty folder is told."""
    found = await unpacked(spool(pack(FILES)))
    assert found == FILES
    assert list(found)[-1] == "none/"


async def test_members_may_be_skipped(pack: Pack, spool: Callable[[bytes], Path]) -> None:
    """Who takes a part of a member's chunks, or none, gets the next member whole."""
    files = {"a": os.urandom(5 * MIB), "b": b"", "c": os.urandom(5 * MIB), "d": b"last"}
    async with unpack(spool(pack(files))) as archive:
        async for member, chunks in archive:
            if member.path == "c":
                assert (await anext(aiter(chunks))) == files["c"][:MIB]
            if member.path == "d":
                assert await joined(chunks) == b"last"


async def test_folders_are_told_if_empty(pack: Pack, spool: Callable[[bytes], Path]) -> None:
    """A folder that holds something is not told, nor is the one that was packed; a leading ./ goes."""
    files = {"./": b"", "./a/": b"", "./a/b": b"x", "./c/": b"", "./c/d/": b"", "e": b"y"}
    assert await unpacked(spool(pack(files))) == {"a/b": b"x", "e": b"y", "c/d/": b""}


@pytest.mark.parametrize("files", [{}, {"./": b""}])
async def test_empty_archives(pack: Pack, files: Files, spool: Callable[[bytes], Path]) -> None:
    """An archive without files is good and holds nothing."""
    assert await unpacked(spool(pack(files))) == {}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"../x": b""}, r"'\.\./x' has a path"),
        ({"a/../../x": b""}, "has a path"),
        ({"/etc/passwd": b""}, "relative"),
        ({"a//b": b""}, "empty parts"),
        ({"a\nb": b""}, "control"),
        ({"x" * 256: b""}, "at most 255"),
        ({"a": b"", "./a": b""}, "'./a' comes twice"),
        ({"a": b"", "a/b": b""}, "'a/b' needs a folder"),
        ({"a/b": b"", "a": b""}, "'a' is a file where"),
        ({"a/": b"", "a": b""}, "'a' is a file where"),
        ({"a": b"", "a/": b""}, "'a/' needs a folder"),
        ({str(number): b"" for number in range(11)}, "more than 10 entries"),
        ({"a": bytes(600), "b": bytes(401)}, "'b' takes the archive over 1000 bytes"),
    ],
)
async def test_bad_entries_are_refused(pack: Pack, files: Files, why: str, spool: Callable[[bytes], Path]) -> None:
    """A path, a pair of paths or a size that is not allowed is `Invalid`, and the entry is named."""
    with pytest.raises(Invalid, match=why) as caught:
        await unpacked(spool(pack(files)), Limits(entries=10, bytes=1_000))
    assert caught.value.errors[0].field == "body"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
async def test_zips_with_links_are_refused(kind: int, spool: Callable[[bytes], Path]) -> None:
    """A link or a device in a zip is refused."""
    info = zipfile.ZipInfo("bad")
    info.external_attr = (kind | 0o777) << 16
    with pytest.raises(Invalid, match="'bad' is a link or a device"):
        await unpacked(spool(packed_zip([("good", b"x"), (info, b"/etc/passwd")])))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.GNUTYPE_SPARSE],
)
async def test_tars_with_links_are_refused(kind: bytes, spool: Callable[[bytes], Path]) -> None:
    """A link, a device or a sparse file in a tar is refused."""
    info = tarfile.TarInfo("bad")
    info.type, info.linkname = kind, "good"
    with pytest.raises(Invalid, match="'bad' is a link"):
        await unpacked(spool(packed_tar([("good", b"x"), (info, b"")])))


async def test_encrypted_zips_are_refused(spool: Callable[[bytes], Path]) -> None:
    """An encrypted entry is refused by name."""
    data = bytearray(packed_zip([("secret", b"x")]))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(Invalid, match="'secret' is encrypted"):
        await unpacked(spool(bytes(data)))


async def test_zips_of_other_methods_are_refused(spool: Callable[[bytes], Path]) -> None:
    """LZMA and bzip2 have no bound on what one read unpacks, so they are refused."""
    info = zipfile.ZipInfo("odd")
    info.compress_type = zipfile.ZIP_LZMA
    with pytest.raises(Invalid, match="'odd' is compressed by another method"):
        await unpacked(spool(packed_zip([(info, b"x")])))


async def test_names_with_nul_are_refused(spool: Callable[[bytes], Path]) -> None:
    """A name in a zip does not end at a NUL."""
    data = packed_zip([("a.txtXevil", b"x")]).replace(b"a.txtX", b"a.txt\0")
    with pytest.raises(Invalid, match="control"):
        await unpacked(spool(data))


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x03\x04", b"x" * 5_000, b"\x1f\x8b\x08", gzip.compress(b"hello")])
async def test_rubbish_is_refused(data: bytes, spool: Callable[[bytes], Path]) -> None:
    """What is no archive is `Invalid`."""
    with pytest.raises(Invalid, match="body"):
        await unpacked(spool(data))


async def test_archives_that_break_off_are_refused(pack: Pack, spool: Callable[[bytes], Path]) -> None:
    """An archive that was cut anywhere is refused before anything is handed out."""
    data = pack({"a": os.urandom(700), "b": b"y" * 512, "c": b""})
    end = len(data) if data.startswith((b"PK", b"\x1f\x8b")) else 512 * 7  # the padding of a tar means nothing
    for cut in range(0, end, 13):
        with pytest.raises(Invalid, match="body"):
            await unpacked(spool(data[:cut]))


async def test_joined_tars_are_refused(spool: Callable[[bytes], Path]) -> None:
    """What lies behind the end mark of a tar would be lost without a word, so it is refused."""
    with pytest.raises(Invalid, match="behind its end mark"):
        await unpacked(spool(packed_tar([("a", b"x")]) + packed_tar([("b", b"y")])))


async def test_changed_bytes_are_refused(spool: Callable[[bytes], Path]) -> None:
    """A zip entry whose bytes are not those of its checksum is refused by name."""
    body = os.urandom(1_000)
    data = packed_zip([("good", b"x"), ("bad", body)])
    at = data.index(body[:100]) if body[:100] in data else data.index(b"bad") + 500
    with pytest.raises(Invalid, match="'bad' is broken"):
        await unpacked(spool(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]))


async def test_bombs_are_refused(pack: Pack, spool: Callable[[bytes], Path]) -> None:
    """An archive that unpacks to far more than its size is refused, unless it is small all the same."""
    limits = Limits(ratio=0, ratio_from=8 * MIB)
    with pytest.raises(Invalid, match="'a' takes the archive over"):
        await unpacked(spool(pack({"a": bytes(20 * MIB)})), limits)
    assert len(await unpacked(spool(pack({"a": bytes(7 * MIB)})), limits)) == 1


async def test_headers_do_not_fill_memory(spool: Callable[[bytes], Path]) -> None:
    """A tar header that says it is very long is refused without being read."""
    info = tarfile.TarInfo("./@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 512 * MIB
    with pytest.raises(Invalid, match="header is too large"):
        await unpacked(spool(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(8 * MIB), 1)))


async def test_indexes_do_not_fill_memory(spool: Callable[[bytes], Path]) -> None:
    """A zip whose index has more entries than allowed is refused before they are held."""
    data = packed_zip([(str(number), b"") for number in range(2_000)])
    with pytest.raises(Invalid, match="more than 100 entries"):
        await unpacked(spool(data), Limits(entries=100))


@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40)])
async def test_tars_that_point_backwards_end(size: int, spool: Callable[[bytes], Path]) -> None:
    """A header with a negative size is refused and is no loop without end."""
    header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size & ((1 << 96) - 1)).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(Invalid, match="body"):
        await unpacked(spool(bytes(header) + bytes(1024)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(kind=st.sampled_from(sorted(PACKS)), changes=st.lists(st.tuples(st.integers(0, 5_000), st.binary(max_size=8))))
async def test_changed_archives_unpack_or_are_invalid(
    kind: str, changes: list[tuple[int, bytes]], spool: Callable[[bytes], Path]
) -> None:
    """Whatever happens to the bytes of an archive, it unpacks or is `Invalid`: never another error."""
    data = bytearray(PACKS[kind]({"a/b": b"hello" * 50, "c/": b"", "d" * 120: b"", "e": os.urandom(300)}))
    for at, replacement in changes:
        at %= len(data)  # noqa: PLW2901
        data[at : at + len(replacement)] = replacement
    with suppress(Invalid):
        await unpacked(spool(bytes(data)), Limits(bytes=1 << 20, entries=50))
