"""The async client: one attribute per noun of the API. Answers are the API's JSON objects."""

from types import TracebackType
from typing import Self

from gurney.client.http import Http, Json
from gurney.client.jobs import Jobs
from gurney.client.maps import Maps
from gurney.client.payloads import Payloads
from gurney.client.rest import Events, Handlers, Nodes, Tokens
from gurney.client.runs import Runs


class AsyncClient:
    """A connection to one server.

    >>> async with AsyncClient("http://127.0.0.1:8350", token) as gurney:
    ...     job = await gurney.jobs.create(map="ct-body", payload=payload["id"])
    ...     job = await gurney.jobs.wait(job["id"])
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.http = Http(url, token)
        self.maps = Maps(self.http)
        self.payloads = Payloads(self.http)
        self.jobs = Jobs(self.http)
        self.runs = Runs(self.http)
        self.handlers = Handlers(self.http)
        self.nodes = Nodes(self.http)
        self.tokens = Tokens(self.http)
        self.events = Events(self.http)

    async def __aenter__(self) -> Self:
        await self.http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.__aexit__(kind, error, trace)

    async def whoami(self) -> Json:
        answer: Json = await self.http.json("GET", "/v1/whoami")
        return answer
