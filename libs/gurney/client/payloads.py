"""Payloads and their files."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from gurney.client.http import CHUNK, Incoming, Json, Moved, chunks_of, file_path, filters, query
from gurney.client.named import Named
from gurney.errors import IntegrityError, Invalid
from gurney.paths import check_path
from gurney.tasks import Together

T = TypeVar("T")

#: Files under way at once.
WIDTH = 8


class Payloads(Named):
    _path = "/v1/payloads"

    async def create(
        self,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        keep: bool = False,
        idempotency_key: str | None = None,
    ) -> Json:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        body = {"name": name, "labels": dict(labels or {}), "keep": keep}
        answer: Json = await self._http.json("POST", self._path, json=body, headers=headers)
        return answer

    def list(
        self,
        *,
        name: str | None = None,
        state: str | None = None,
        label: Mapping[str, str] | None = None,
        created_after: str | None = None,
        created_before: str | None = None,
    ) -> AsyncIterator[Json]:
        wanted = filters(
            name=name, state=state, label=label, created_after=created_after, created_before=created_before
        )
        return self._http.pages(self._path, wanted)

    def files(self, ref: str, *, prefix: str | None = None) -> AsyncIterator[Json]:
        return self._http.pages(f"{self._of(ref)}/files", filters(prefix=prefix))

    async def write(self, ref: str, path: str, content: bytes | AsyncIterator[bytes]) -> Json:
        """Upload one file's content."""
        answer: Json = await self._http.json("PUT", self._file(ref, path), data=content)
        return answer

    async def read(self, ref: str, path: str) -> bytes:
        """Download one file's content."""
        async with self._http.stream("GET", self._file(ref, path)) as response:
            return await response.read()

    async def remove(self, ref: str, path: str) -> None:
        await self._http.json("DELETE", self._file(ref, path))

    async def upload(self, ref: str, sources: Iterable[Path | str], *, moved: Moved | None = None) -> int:
        """Upload files and whole folders (with their names below the folder); returns how many files."""
        files = await asyncio.to_thread(local_files, sources)
        await together(self.write(ref, path, chunks_of(str(file), moved)) for path, file in files)
        return len(files)

    async def download(self, ref: str, into: Path | str, *, moved: Moved | None = None) -> Sequence[Path]:
        """Download all files, each verified by its SHA-256; returns the local paths."""
        root = Path(into)
        files = [file async for file in self.files(ref)]
        return await together(self._fetch(ref, file, root, moved) for file in files)

    async def _fetch(self, ref: str, file: Json, root: Path, moved: Moved | None) -> Path:
        target = root / check_path(file["path"])
        if file["path"].endswith("/"):
            await asyncio.to_thread(target.mkdir, parents=True, exist_ok=True)
            return target
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        short = hashlib.sha256(target.name.encode()).hexdigest()  # a name may be as long as a file system allows
        part = target.with_name(f".{short}.part")
        try:
            hashed = await self._write_to(part, ref, file["path"], moved)
            if hashed != file["sha256"]:
                raise IntegrityError(f"{file['path']}: the downloaded bytes are not what the server stored")
            await asyncio.to_thread(part.replace, target)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(part.unlink, missing_ok=True))
            raise
        return target

    async def _write_to(self, part: Path, ref: str, path: str, moved: Moved | None) -> str:
        hashed = hashlib.sha256()
        async with self._http.stream("GET", self._file(ref, path)) as response:
            with await asyncio.to_thread(part.open, "wb") as out:
                async for chunk in response.content.iter_chunked(CHUNK):
                    await asyncio.to_thread(hashed.update, chunk)
                    await asyncio.to_thread(out.write, chunk)
                    if moved:
                        moved(len(chunk))
        return hashed.hexdigest()

    async def archive(self, ref: str, *, tar: bool = False) -> bytes:
        """Return all files as one zip, or tar, in memory."""
        headers = {"Accept": "application/x-tar" if tar else "application/zip"}
        async with self._http.stream("GET", f"{self._of(ref)}/archive", headers=headers) as response:
            return await response.read()

    @asynccontextmanager
    async def reading(self, ref: str, path: str) -> AsyncIterator[Incoming]:
        """Yield one file's content as it comes."""
        async with self._http.stream("GET", self._file(ref, path)) as response:
            yield Incoming(response.content.iter_chunked(CHUNK), response.content_length)

    async def create_from_archive(
        self,
        archive: Path | str,
        *,
        name: str | None = None,
        label: Mapping[str, str] | None = None,
        kind: str | None = None,
        idempotency_key: str | None = None,
    ) -> Json:
        """Create a payload and unpack a zip or tar into it; `kind`: its media type, by default as its name says."""
        kind = kind or ("application/zip" if str(archive).endswith(".zip") else "application/x-tar")
        path = self._path + query(filters(name=name, label=label))
        headers = {"Content-Type": kind} | ({"Idempotency-Key": idempotency_key} if idempotency_key else {})
        data = chunks_of(str(archive), None)
        answer: Json = await self._http.json("POST", path, data=data, headers=headers)
        return answer

    def _file(self, ref: str, path: str) -> str:
        return f"{self._of(ref)}/files/{file_path(path)}"


async def together(works: Iterable[Awaitable[T]]) -> Sequence[T]:
    """Do these, a few at once; the first error ends the others and is raised."""
    gate = asyncio.Semaphore(WIDTH)

    async def gated(work: Awaitable[T]) -> T:
        async with gate:
            return await work

    async with Together() as group:
        tasks = [group.start(gated(work)) for work in works]
    return [task.result() for task in tasks]


def local_files(sources: Iterable[Path | str]) -> Sequence[tuple[str, Path]]:
    """Return (path in the payload, local file): a file by its name, a folder's files by their paths below it.

    Raises `Invalid` for a path that no payload holds, where two would get one, and for what is no file, as a link to a
    folder; OSError for a folder that cannot be read: nothing is left out.
    """
    found: dict[str, Path] = {}
    for source in map(Path, sources):
        for path, file in _below(source) if source.is_dir() else [(source.name, source)]:
            _check(path, file)
            if path in found:
                raise Invalid(f"{found[path]} and {file} would both be {path} in the payload: upload their folder")
            found[path] = file
    return list(found.items())


def _check(path: str, file: Path) -> None:
    try:
        check_path(path)
    except Invalid as error:
        raise Invalid(f"{str(file)!r}: {error}") from None


def _below(folder: Path) -> Iterable[tuple[str, Path]]:
    def refuse(error: OSError) -> NoReturn:
        raise error

    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        links = [path for name in folders if (path := Path(parent, name)).is_symlink()]  # which the walk does not enter
        others = [path for name in names if not (path := Path(parent, name)).is_file()]
        if links or others:
            raise Invalid(f"{(links + others)[0]} is no file: upload what it leads to itself, or take it out")
        files += [Path(parent, name) for name in names]
    for file in sorted(files):
        yield file.relative_to(folder).as_posix(), file
