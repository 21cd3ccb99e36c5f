"""The only file that knows MongoDB's driver: connects, asks, and says in one line what is wrong.

Whatever is asked has its answer, or an error, within bounded time. Messages name the server, never credentials or data.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import bson
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorDatabase
from pymongo import IndexModel, ReadPreference
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError, ServerSelectionTimeoutError
from pymongo.errors import WriteConcernError as WriteConcernFault
from pymongo.read_concern import ReadConcern
from pymongo.uri_parser import parse_uri

from gurney.documents.mongo_query import Index
from gurney.errors import StoreUnavailable

T = TypeVar("T")
Json = dict[str, Any]

MAJORITY: Mapping[str, Any] = {"w": "majority", "j": True}
DUPLICATE_KEY = 11000
#: To making an index: there is another of its name or kind, or what it cannot hold.
NO_INDEX = frozenset({67, 85, 86, DUPLICATE_KEY})
REFUSALS = {13: "does not let this user do that", 18: "refuses the credentials", 8000: "refuses the credentials"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long things may take, in seconds."""

    #: To find a primary.
    selection: float = 3.0
    connect: float = 2.0
    #: Until the server replies.
    reply: float = 5.0
    #: All of a read, with what the driver tries again.
    read: float = 8.0
    #: From the first try of a write until the last begins: it is tried again while its fate is not known.
    write: float = 8.0


BOUNDS = Bounds()


class Refused(StoreUnavailable):
    """MongoDB is not as it must be for us, or we are not whom it lets in."""

    lasting = True


class Unsure(StoreUnavailable):
    """Nothing is known of what was asked: it may have been done, or be done yet."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of the statements of one command."""

    #: Documents inserted, or found by an update.
    met: int
    #: Statements that failed, most of them on a unique key.
    failed: frozenset[int]
    #: What failed otherwise.
    trouble: str | None = None


def encode(document: Json) -> RawBSONDocument:
    """Return a document as it travels; raises where MongoDB cannot hold it."""
    return RawBSONDocument(bson.encode(document))


class Link:
    """A client of one database."""

    def __init__(self, url: str, database: str, bounds: Bounds) -> None:
        self.bounds = bounds
        self._url = url
        self._name = database
        self._where = "MongoDB"
        self._client: AsyncIOMotorClient[Json] | None = None
        self._connecting = asyncio.Lock()

    async def connect(self) -> None:
        """Connect, and see whether the server lets us in."""
        async with self._connecting:
            self._client = self._client or await self._new_client(self.bounds.reply)
        await self._bounded(self._client[self._name].command("ping"))

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)
            self._client = None

    async def make_indexes(self, name: str, indexes: Iterable[Index]) -> None:
        """Make the indexes that are missing, however long that takes."""
        there = await self._bounded(self._database[name].index_information())
        missing = [
            IndexModel(list(index.keys), name=index.name, unique=index.unique, sparse=index.sparse)
            for index in indexes
            if index.name not in there
        ]
        if not missing:
            return
        patient = await self._new_client(None)
        try:
            await patient[self._name][name].create_indexes(missing)
        except PyMongoError as error:
            raise self._fault(error, f"cannot make the indexes of {name}") from error
        finally:
            await asyncio.to_thread(patient.close)

    async def find(
        self,
        name: str,
        wanted: Json,
        fields: Sequence[str],
        *,
        sort: Sequence[tuple[str, int]] | None = None,
        limit: int = 0,
        hint: str | None = None,
        level: Literal["majority", "local"] = "majority",
    ) -> list[Json]:
        """Return these fields of documents as the primary has them."""
        concern = ReadConcern(level)
        table = self._database.get_collection(name, read_concern=concern, read_preference=ReadPreference.PRIMARY)
        cursor = table.find(wanted, dict.fromkeys(fields, 1), sort=sort, limit=limit, batch_size=limit, hint=hint)
        return await self._bounded(cursor.to_list(None))

    async def aggregate(self, name: str, pipeline: list[Json]) -> list[Json]:
        concern = ReadConcern("majority")
        table = self._database.get_collection(name, read_concern=concern, read_preference=ReadPreference.PRIMARY)
        return await self._bounded(table.aggregate(pipeline).to_list(None))

    async def write(
        self, kind: Literal["insert", "update", "delete"], name: str, statements: Sequence[Mapping[str, Any]]
    ) -> Reply:
        """Send statements of one kind; raises `Unsure` where any may or may not hold, else `StoreUnavailable`."""
        if not statements:
            return Reply(0, frozenset())
        items = {"insert": "documents", "update": "updates", "delete": "deletes"}[kind]
        command = {kind: name, items: list(statements), "ordered": False, "writeConcern": MAJORITY}
        try:
            reply = await self._database.command(command)
        except (ServerSelectionTimeoutError, OperationFailure) as error:
            if isinstance(error, WriteConcernFault):
                raise self._unsure(error) from error
            raise self._fault(error) from error
        except PyMongoError as error:
            raise self._unsure(error) from error
        if "writeConcernError" in reply:
            raise Unsure(f"{self._where} refuses: {_name(reply['writeConcernError'])}")
        faults = reply.get("writeErrors", [])
        others = [f"{self._where} refuses: {_name(fault)}" for fault in faults if fault["code"] != DUPLICATE_KEY]
        return Reply(reply["n"], frozenset(fault["index"] for fault in faults), others[0] if others else None)

    @property
    def _database(self) -> "AsyncIOMotorDatabase[Json]":
        if self._client is None:
            raise StoreUnavailable("the documents are not open")
        return self._client[self._name]

    async def _new_client(self, reply_s: float | None) -> "AsyncIOMotorClient[Json]":
        loop = asyncio.get_running_loop()

        def make() -> "AsyncIOMotorClient[Json]":
            parse_uri(self._url, warn=False)  # raises for what the client would warn of
            return AsyncIOMotorClient(
                self._url,
                io_loop=loop,
                appname="gurney",
                serverSelectionTimeoutMS=self.bounds.selection * 1000,
                connectTimeoutMS=self.bounds.connect * 1000,
                socketTimeoutMS=reply_s and reply_s * 1000,
                heartbeatFrequencyMS=2000,
            )

        try:
            client = await asyncio.to_thread(make)
        except (PyMongoError, ValueError, TypeError):  # their texts may tell the password
            raise Refused("mongo_url is not the URL of a MongoDB server (mongodb://...)") from None
        self._where = f"MongoDB at {urlsplit(self._url).netloc.rpartition('@')[2]}"
        return client

    async def _bounded(self, asking: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.bounds.read):
                return await asking
        except (PyMongoError, TimeoutError) as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception, doing: str = "") -> StoreUnavailable:
        lasting = {*REFUSALS, *(NO_INDEX if doing else ())}
        refused = isinstance(error, OperationFailure) and error.code in lasting
        kind = Refused if refused else StoreUnavailable
        return kind(f"{self._where}{f': {doing}:' if doing else ''} {_told(error)}")

    def _unsure(self, error: Exception) -> Unsure:
        return Unsure(f"{self._where} {_told(error)}")


def _name(fault: Mapping[str, Any]) -> str:
    return str(fault.get("codeName") or f"code {fault['code']}")


def _told(error: Exception) -> str:
    """Say what is wrong; the driver's own text, with all it knows of the servers or of a statement, is for nobody."""
    if isinstance(error, OperationFailure):
        with suppress(KeyError, TypeError):
            return REFUSALS[error.code or 0]
        return f"refuses: {_name({'code': error.code, **(error.details or {})})}"
    if isinstance(error, ConnectionFailure | TimeoutError):
        reason = str(error).partition(" (configured")[0].partition(", Timeout:")[0].partition("\n")[0]
        return f"does not answer ({reason[:200]})" if reason else "does not answer"
    return f"cannot be asked ({type(error).__name__})"
