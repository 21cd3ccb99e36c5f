"""Payloads and their files."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from gurney.client.http import CHUNK, Json, Moved, chunks_of, file_path, filters, query
from gurney.client.named import Named
from gurney.errors import IntegrityError
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
        files = await asyncio.to_thread(lambda: list(local_files(sources)))
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
        part = target.with_name(f".{target.name[:200]}.part")
        hashed = hashlib.sha256()
        async with self._http.stream("GET", self._file(ref, file["path"])) as response:
            with await asyncio.to_thread(part.open, "wb") as out:
                async for chunk in response.content.iter_chunked(CHUNK):
                    await asyncio.to_thread(hashed.update, chunk)
                    await asyncio.to_thread(out.write, chunk)
                    if moved:
                        moved(len(chunk))
        if hashed.hexdigest() != file["sha256"]:
            await asyncio.to_thread(part.unlink)
            raise IntegrityError(f"{file['path']}: the downloaded bytes are not what the server stored")
        await asyncio.to_thread(part.replace, target)
        return target

    async def archive(self, ref: str, *, tar: bool = False) -> bytes:
        """Return all files as one zip, or tar, in memory."""
        headers = {"Accept": "application/x-tar" if tar else "application/zip"}
        async with self._http.stream("GET", f"{self._of(ref)}/archive", headers=headers) as response:
            return await response.read()

    async def create_from_archive(self, archive: Path | str, *, name: str | None = None) -> Json:
        """Create a payload and unpack a zip or tar into it."""
        kind = "application/zip" if str(archive).endswith(".zip") else "application/x-tar"
        path = self._path + query(filters(name=name))
        data = chunks_of(str(archive), None)
        answer: Json = await self._http.json("POST", path, data=data, headers={"Content-Type": kind})
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


def local_files(sources: Iterable[Path | str]) -> Iterable[tuple[str, Path]]:
    """Yield (path in the payload, local file): a file by its name, a folder's files by their paths below it."""
    for source in map(Path, sources):
        if source.is_dir():
            for file in sorted(each for each in source.rglob("*") if each.is_file()):
                yield file.relative_to(source).as_posix(), file
        else:
            yield source.name, source
