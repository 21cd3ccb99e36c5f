"""What crosses NATS, as a plain subscriber beside the server sees it: the moments to kill at, and what was asked for.

A kill leaves the nats-server alive, so all that was sent before it still arrives: what is known then is exact.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

#: In the order of a life.
PHASES = ("body", "commit", "accept", "place", "spawn", "run", "collect", "fold", "webhook")

#: Phase -> the subject with which it begins.
BEGINS = {
    "body": r"svc\.payload\.begin",
    "commit": r"svc\.payload\.commit",
    "accept": r"svc\.job\.create",
    "place": r"job\.requested\..*",
    "spawn": r"run\..*\.start\..*",
    "run": r"report\.run\..*\.running\..*",
    "collect": r"report\.run\..*\.collecting\..*|svc\.payload\.begin",
    "fold": r"svc\.scheduler\.ended|lifecycle\.(succeeded|failed)\..*",
    "webhook": r"svc\.payload\.end|job\.(succeeded|failed)\..*",
}
FOLLOWED = ("svc.payload.*", "svc.job.create", "svc.scheduler.ended", "job.*.*", "run.>", "report.run.>", "lifecycle.>")

_SETTLES_S = 5


class Watch:
    """What the server that runs now was asked for, as long as it does."""

    def __init__(self) -> None:
        #: (payload, path) of uploads.
        self.begun: set[tuple[str, str]] = set()
        self.committing: set[tuple[str, str]] = set()
        #: Idempotency keys of jobs.
        self.creating: set[str] = set()
        self._awaited: tuple[re.Pattern[str], Callable[[], object]] | None = None
        self._nats: Client | None = None

    @asynccontextmanager
    async def following(self, nats_server: Mapping[str, Any]) -> AsyncIterator[None]:
        """Follow the nats-server that serves now."""
        self._nats = await nats.connect(**nats_server, allow_reconnect=False, error_cb=_ignored)
        for subject in FOLLOWED:
            await self._nats.subscribe(subject, cb=self._see)
        await self._nats.flush()
        try:
            yield
        finally:
            await self._nats.close()
            self.begun.clear()
            self.committing.clear()
            self.creating.clear()

    async def settle(self) -> None:
        """Return when all has arrived that was sent until now."""
        if self._nats and self._nats.is_connected:
            await self._nats.flush(timeout=_SETTLES_S)

    def at_next(self, phase: str, act: Callable[[], object]) -> None:
        """Act, once, at the next message with which a phase begins."""
        self._awaited = re.compile(BEGINS[phase]), act

    def forget(self) -> None:
        """Act at no message any more."""
        self._awaited = None

    async def _see(self, message: Msg) -> None:
        if self._awaited and self._awaited[0].fullmatch(message.subject):
            act, self._awaited = self._awaited[1], None
            act()
        match message.subject:
            case "svc.payload.begin" if (told := json.loads(message.data))["caller"]:
                self.begun |= {(told["owner"], path) for path in told["paths"]}
            case "svc.payload.commit" if (told := json.loads(message.data))["caller"]:
                self.committing |= {(told["owner"], item["path"]) for item in told["items"]}
            case "svc.job.create":
                self.creating.add(json.loads(message.data)["idempotency"]["key"].rpartition(":")[2])


async def _ignored(_: Exception) -> None:
    await asyncio.sleep(0)
