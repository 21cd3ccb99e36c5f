"""What the façade keeps with Gurney: archives as they were posted, and payloads of their files."""

import contextlib
import tarfile
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from gurney.client import AsyncClient
from gurney.client.http import Incoming, chunks_of
from gurney.errors import Invalid, NotFound
from gurney.objects.threads import hop
from services.inference_server.documents import Format, Numbered
from services.inference_server.patience import patiently

#: Labels of all that is the façade's: of what kind, and of which model or task.
KIND, THING = "inference-server", "inference-server.id"
#: The one file of a payload with an archive as it was posted.
ARCHIVE = "archive"

MEDIA: Mapping[Format, str] = {"zip": "application/zip", "tar": "application/x-tar"}


def labels_of(thing: Numbered) -> Mapping[str, str]:
    return {KIND: type(thing).__name__.lower(), THING: thing.label}


class Stock:
    """Whatever it makes, it makes once, however often it is asked."""

    def __init__(self, gurney: AsyncClient) -> None:
        self._gurney = gurney

    async def keep(self, thing: Numbered, archive: Path, part: str) -> str:
        """Keep an archive as it is; returns the payload. A server that is away is waited for."""
        key = f"{thing.label}-{part}"

        async def kept() -> str:
            made = await self._gurney.payloads.create(labels=labels_of(thing), keep=True, idempotency_key=key)
            await self._gurney.payloads.write(made["id"], ARCHIVE, chunks_of(str(archive), None))
            return str(made["id"])

        return await patiently(kept)

    async def unpack(self, thing: Numbered, archive: Path, part: str) -> str:
        """Make a payload of an archive's files; raises `Invalid` and `TooLarge` where it is none. It does not wait."""
        await hop(check, archive, thing.format)
        made = await self._gurney.payloads.create_from_archive(
            archive, label=labels_of(thing), kind=MEDIA[thing.format], idempotency_key=f"{thing.label}-{part}"
        )
        return str(made["id"])

    @asynccontextmanager
    async def reading(self, payload: str) -> AsyncIterator[Incoming]:
        """Yield an archive that was kept, as it was posted."""
        async with self._gurney.payloads.reading(payload, ARCHIVE) as incoming:
            yield incoming

    async def drop(self, payload: str | None) -> None:
        """Let a payload go; one that has gone is no fault."""
        if payload is not None:
            with contextlib.suppress(NotFound):
                await self._gurney.payloads.delete(payload)


def check(archive: Path, wanted: Format) -> None:
    """Raise `Invalid` where an archive is not what it should be. It blocks."""
    if not (zipfile.is_zipfile(archive) if wanted == "zip" else tarfile.is_tarfile(archive)):
        raise Invalid(f"is no {wanted}")
