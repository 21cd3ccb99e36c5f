"""Carries a round of writes through: sends it, and again when its answer was lost, and finds out who lost.

An answer has counts, not names: unless all writes of a round met their document, the documents tell by their marks.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gurney import clock
from gurney.documents.mongo_link import Json, Link, Reply, Unsure, encode
from gurney.documents.mongo_write import Again, Found, insert_of, judge, keys_of, update_of
from gurney.documents.port import Write
from gurney.errors import GurneyError, RevisionConflict, StoreUnavailable

RETRY_S = 0.1
#: A write that is in somebody else's way so often gives up.
TRIES = 20


@dataclass(eq=False, slots=True)
class Sent:
    """A write on its way: a document to insert, or a statement that updates one."""

    write: Write
    body: str | None
    mark: str
    at: float
    inserts: bool
    raw: Any = None
    #: What became of it, once it is `known`.
    fault: GurneyError | None = None
    known: bool = False

    def __post_init__(self) -> None:
        self.become(insert=self.inserts)

    @property
    def id(self) -> str:
        return self.write.id

    @property
    def size(self) -> int:
        return len(self.raw.raw)

    def become(self, *, insert: bool) -> None:
        """Insert, or update what is there."""
        encoded: Json = (insert_of if insert else update_of)(self.write, self.body, self.mark, self.at)
        self.inserts, self.raw = insert, encode(encoded)

    def ends(self, fault: GurneyError | None) -> None:
        self.fault, self.known = fault, True


class Rounds:
    """The rounds of one collection."""

    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self._name = name

    async def carry(self, round_: Sequence[Sent]) -> list[GurneyError | None]:
        """Return what became of each write."""
        until = clock.monotonic() + self._link.bounds.write
        left = list(round_)
        reached = False
        races = 0
        while left:
            trouble = await self._try(left)
            left = [each for each in left if not each.known]
            reached = reached or trouble is None or isinstance(trouble, Unsure)
            races += trouble is None
            if trouble and reached and clock.monotonic() < until:
                await asyncio.sleep(RETRY_S)
            elif trouble:
                _end(left, StoreUnavailable(trouble.message))
                break
            elif races > TRIES:
                _end(left, RevisionConflict(f"{self._name}: too many write at once"))
                break
        return [each.fault for each in round_]

    async def _try(self, left: Sequence[Sent]) -> StoreUnavailable | None:
        try:
            lost, trouble = await self._send(left)
            await self._judge(lost)
        except StoreUnavailable as error:  # while looking, after some may have held
            return Unsure(error.message)
        return trouble

    async def _send(self, left: Sequence[Sent]) -> tuple[list[Sent], StoreUnavailable | None]:
        """Send what is left; return what may not have held and a reason. The others are known to hold."""
        inserts = [each for each in left if each.inserts]
        updates = [each for each in left if not each.inserts]
        lost: list[Sent] = []
        troubles: list[StoreUnavailable] = []
        replies = await asyncio.gather(self._write("insert", inserts), self._write("update", updates))
        for part, reply in zip((inserts, updates), replies, strict=True):
            if isinstance(reply, StoreUnavailable):
                troubles.append(reply)
                continue
            troubles += [Unsure(reply.trouble)] if reply.trouble else []
            unnamed = part is updates and reply.met < len(part)
            for number, each in enumerate(part):
                if unnamed or number in reply.failed:
                    lost.append(each)
                else:
                    each.ends(None)
        unsure = (each for each in troubles if isinstance(each, Unsure))
        return lost, next(unsure, next(iter(troubles), None))

    async def _write(self, kind: Literal["insert", "update"], part: Sequence[Sent]) -> Reply | StoreUnavailable:
        try:
            return await self._link.write(kind, self._name, [each.raw for each in part])
        except StoreUnavailable as error:
            return error

    async def _judge(self, lost: Sequence[Sent]) -> None:
        """Look at the documents of these as they are, whether a majority has them or not."""
        if not lost:
            return
        wanted = {"_id": {"$in": [each.id for each in lost]}}
        there = await self._link.find(self._name, wanted, ("revision", "marks"), level="local")
        found = {each["_id"]: Found(each["revision"], each["marks"]) for each in there}
        holders = await self._holders([key for each in lost for key in keys_of(each.write)])
        for each in lost:
            verdict = judge(each.write, each.mark, found.get(each.id), holders)
            if isinstance(verdict, Again):
                each.become(insert=verdict.insert)
            else:
                each.ends(verdict)

    async def _holders(self, keys: Sequence[str]) -> dict[str, str]:
        if not keys:
            return {}
        there = await self._link.find(self._name, {"keys": {"$in": list(keys)}}, ("keys",), level="local")
        return {key: each["_id"] for each in there for key in each["keys"]}


def _end(left: Sequence[Sent], fault: GurneyError) -> None:
    for each in left:
        if not each.known:
            each.ends(fault)
