"""What MAPs bring along in payloads: pinned by a digest, and held for as long as the MAP may run."""

import posixpath

from gurney import telemetry
from gurney.bus import Bus
from gurney.content import digest_of
from gurney.errors import GurneyError, Invalid
from gurney.model.access import Caller
from gurney.model.common import Ref
from gurney.model.map import AskedContent, Map, StaticContent
from gurney.model.payload import ClaimInput, FileList, FileView, ReleaseClaim
from gurney.subjects import PAYLOAD_CLAIM, PAYLOAD_FILES, PAYLOAD_GET, PAYLOAD_RELEASE

_PAGE = 1000

_log = telemetry.log("map")


class Contents:
    """Asked for where MAPs come in, let go where they go."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def look(self, caller: Caller, asked: AskedContent) -> StaticContent:
        """Return what a registration would hold; nothing is held."""
        payload = await self._bus.request(PAYLOAD_GET, Ref(caller=caller, ref=asked.payload))
        return await self._pinned(caller, asked, payload.id)

    async def hold(self, caller: Caller, asked: AskedContent, map_id: str) -> StaticContent:
        """Hold the payload: from here on none of its files changes."""
        question = ClaimInput(caller=caller, payload=asked.payload, job=map_id, kind="static")
        payload = await self._bus.request(PAYLOAD_CLAIM, question)
        try:
            return await self._pinned(caller, asked, payload.id)
        except GurneyError:
            await self._release(payload.id, map_id)
            raise

    async def release(self, document: Map) -> None:
        """Let go of what the MAP holds; where that fails, a sweep of the payload service does it later."""
        if document.content is not None:
            await self._release(document.content.payload, document.id)

    async def _release(self, payload: str, map_id: str) -> None:
        try:
            await self._bus.request(PAYLOAD_RELEASE, ReleaseClaim(payload=payload, job=map_id, kind="static"))
        except GurneyError as error:
            _log.info("left to a sweep", map=map_id, error=error)

    async def _pinned(self, caller: Caller, asked: AskedContent, payload: str) -> StaticContent:
        files: list[FileView] = []
        question = FileList(caller=caller, payload=payload, limit=_PAGE)
        while True:
            page = await self._bus.request(PAYLOAD_FILES, question)
            files += page.items
            if page.next_cursor is None:
                break
            question = question.but(cursor=page.next_cursor)
        if not files:
            raise Invalid.field("description.content.payload", f"{asked.payload} has no files")
        return StaticContent(payload=payload, path=posixpath.normpath(asked.path), digest=digest_of(files))
