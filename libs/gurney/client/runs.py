"""Synchronous runs: a zip in, a zip of the results out, in one request; nothing of either stays on the server."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gurney.client.http import CHUNK, Http, Moved, chunks_of, filters, query, segment


class Runs:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def run(
        self,
        map: str,  # noqa: A002  # what people call it
        archive: Path | str,
        into: Path | str,
        *,
        wait_s: int | None = None,
        moved: Moved | None = None,
        **options: Any,
    ) -> Path:
        """Run a MAP on a local zip and write the zip of its results to `into`; options are the route's parameters.

        Raises `RunFailed`, with the job's id and why, and `RunTimedOut` past the job's timeout or `wait_s`.
        """
        target = Path(into)
        part = target.with_name(f"{target.name}.part")
        async with self.running(map, chunks_of(str(archive), moved), wait_s=wait_s, **options) as chunks:
            try:
                with await asyncio.to_thread(part.open, "wb") as out:
                    async for chunk in chunks:
                        await asyncio.to_thread(out.write, chunk)
                return await asyncio.to_thread(part.replace, target)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(part.unlink, missing_ok=True))
                raise

    @asynccontextmanager
    async def running(
        self,
        map: str,  # noqa: A002
        data: AsyncIterator[bytes],
        *,
        wait_s: int | None = None,
        label: Mapping[str, str] | None = None,
        **options: Any,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Run a MAP on the bytes of a zip; yields those of the zip of its results. Leaving early ends the run."""
        path = f"/v1/run/{segment(map)}{query(filters(label=label, **options))}"
        headers = {"Content-Type": "application/zip"} | ({"Prefer": f"wait={wait_s}"} if wait_s is not None else {})
        async with self._http.stream("POST", path, data=data, headers=headers) as response:
            yield response.content.iter_chunked(CHUNK)
