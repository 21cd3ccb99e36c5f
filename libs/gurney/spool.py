"""Bytes that come in and are needed again: in a file without a name, so that not even a kill leaves them behind."""

import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from gurney.objects.layout import translated
from gurney.objects.threads import hop

#: Bytes that are written at once.
BLOCK = 1 << 20


@asynccontextmanager
async def spooled(folder: Path, chunks: AsyncIterable[bytes]) -> AsyncIterator[Path]:
    """Take all of it in; yields a path by which this process may open it, as often as it likes, while inside.

    Raises `StoreUnavailable` where the disk is full.
    """
    file = await hop(_unnamed, folder)
    try:
        gathered: list[bytes] = []
        size = 0
        async for chunk in chunks:
            gathered.append(bytes(chunk))
            size += len(chunk)
            if size >= BLOCK:
                await hop(_write, file, gathered)
                gathered, size = [], 0
        await hop(_write, file, gathered)
        yield Path(f"/proc/self/fd/{file.fileno()}")
    finally:
        await hop(file.close)


@translated()
def _unnamed(folder: Path) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


@translated()
def _write(file: IO[bytes], parts: Sequence[bytes]) -> None:
    for part in parts:
        file.write(part)
    file.flush()
