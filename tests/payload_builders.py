"""What the tests of the payload service share: callers, tokens, and an uploader that does what movers do."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from gurney import clock
from gurney.bus import Bus
from gurney.model.access import Caller, Role
from gurney.model.base import Message
from gurney.model.job import JobRefs, JobsAlive
from gurney.model.payload import (
    BeginUploads,
    ClaimInput,
    Committed,
    CommitUploads,
    CreatePayload,
    EndPayloads,
    FileList,
    Payload,
    PayloadCreate,
    Uploaded,
)
from gurney.runtoken import mint
from gurney.subjects import (
    PAYLOAD_BEGIN,
    PAYLOAD_CLAIM,
    PAYLOAD_COMMIT,
    PAYLOAD_CREATE,
    PAYLOAD_END,
    PAYLOAD_FILES,
    Operation,
)
from gurney.transfer import open_put

SECRET = "of all runs"
ANN = Caller(token="tok_a", subject="ann", role=Role.DEVELOPER)
Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


class Time:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        return clock.now() + self._ahead

    def pass_(self, **span: float) -> None:
        self._ahead += timedelta(**span)


class Jobs:
    """Stands for the job service: knows which jobs there are."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.ended: set[str] = set()
        self.finalized: set[str] = set()

    async def alive(self, asked: JobRefs) -> JobsAlive:
        live, ended, finalized = (
            tuple(each.intersection(asked.jobs)) for each in (self.live, self.ended, self.finalized)
        )
        return JobsAlive(live=live, ended=ended, finalized=finalized)


@dataclass
class Asker:
    """Asks the payload service as edge, agent and job service do."""

    bus: Bus

    async def ask(self, operation: Operation[Q, R], question: Q) -> R:
        return await self.bus.request(operation, question)

    async def create(self, name: str | None = None, *, keep: bool = False, caller: Caller = ANN) -> Payload:
        return await self.ask(PAYLOAD_CREATE, PayloadCreate(caller=caller, body=CreatePayload(name=name, keep=keep)))

    async def upload(
        self, owner: str, files: dict[str, bytes], *, token: str | None = None, caller: Caller | None = ANN
    ) -> Committed:
        """Begin, put and commit files."""
        items = await self.put(owner, files, token=token, caller=caller)
        return await self.commit(owner, items, token=token, caller=caller)

    async def put(
        self, owner: str, files: dict[str, bytes], *, token: str | None = None, caller: Caller | None = ANN
    ) -> tuple[Uploaded, ...]:
        """Begin and put files, and leave them uncommitted."""
        who = None if token else caller
        begun = await self.ask(PAYLOAD_BEGIN, BeginUploads(caller=who, token=token, owner=owner, paths=tuple(files)))
        for item in begun.items:
            if not item.path.endswith("/"):
                async with open_put(item.url) as put:
                    await put.write(files[item.path])
                    await put.commit()
        return tuple(uploaded(item.path, item.key, files[item.path]) for item in begun.items)

    async def commit(
        self, owner: str, items: tuple[Uploaded, ...], *, token: str | None = None, caller: Caller | None = ANN
    ) -> Committed:
        who = None if token else caller
        return await self.ask(PAYLOAD_COMMIT, CommitUploads(caller=who, token=token, owner=owner, items=items))

    async def paths(self, payload: str, caller: Caller = ANN) -> list[str]:
        page = await self.ask(PAYLOAD_FILES, FileList(caller=caller, payload=payload, limit=1000))
        return [file.path for file in page.items]

    async def claim(self, payload: str, job: str, caller: Caller = ANN) -> Payload:
        return await self.ask(PAYLOAD_CLAIM, ClaimInput(caller=caller, payload=payload, job=job))

    async def end(self, payload: str, job: str, run: str | None, *, partial: bool = False) -> str | None:
        question = EndPayloads(job=job, payload=payload, run=run, partial=partial, project="default", created_by="ann")
        return (await self.ask(PAYLOAD_END, question)).results


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Return when something is so that tells of itself in documents only."""
    while True:
        if await check():
            return
        await asyncio.sleep(0.005)


def uploaded(path: str, key: str, content: bytes) -> Uploaded:
    return Uploaded(path=path, key=key, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def token_of(job: str, payload: str, attempt: int = 1) -> str:
    return mint(SECRET, f"{job}-{attempt}", payload)
