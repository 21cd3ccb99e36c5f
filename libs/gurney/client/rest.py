"""Job handlers, nodes, tokens, events."""

from collections.abc import AsyncIterator
from typing import Any

from gurney.client.http import Http, Json, ServerEvent, segment


class Handlers:
    _path = "/v1/handlers"

    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(self, url: str, **options: Any) -> Json:
        """Register a job handler; the answer carries its secret, this once."""
        answer: Json = await self._http.json("POST", self._path, json={"url": url, **options})
        return answer

    async def get(self, handler: str) -> Json:
        answer: Json = await self._http.json("GET", f"{self._path}/{segment(handler)}")
        return answer

    def list(self) -> AsyncIterator[Json]:
        return self._http.pages(self._path, [])

    async def patch(self, handler: str, **changes: Any) -> Json:
        answer: Json = await self._http.json("PATCH", f"{self._path}/{segment(handler)}", json=changes)
        return answer

    async def delete(self, handler: str) -> None:
        await self._http.json("DELETE", f"{self._path}/{segment(handler)}")

    async def test(self, handler: str) -> Json:
        answer: Json = await self._http.json("POST", f"{self._path}/{segment(handler)}/test")
        return answer

    def deliveries(self, handler: str) -> AsyncIterator[Json]:
        return self._http.pages(f"{self._path}/{segment(handler)}/deliveries", [])


class Nodes:
    def __init__(self, http: Http) -> None:
        self._http = http

    def list(self) -> AsyncIterator[Json]:
        return self._http.pages("/v1/nodes", [])

    async def get(self, node: str) -> Json:
        answer: Json = await self._http.json("GET", f"/v1/nodes/{segment(node)}")
        return answer

    async def drain(self, node: str) -> Json:
        """Have no new jobs placed on a node (administrator); those that it has go on."""
        answer: Json = await self._http.json("POST", f"/v1/nodes/{segment(node)}/drain")
        return answer

    async def resume(self, node: str) -> Json:
        """Have jobs placed on a node again (administrator)."""
        answer: Json = await self._http.json("POST", f"/v1/nodes/{segment(node)}/resume")
        return answer


class Tokens:
    def __init__(self, http: Http) -> None:
        self._http = http

    async def create(self, subject: str, role: str, **options: Any) -> Json:
        """Make a token; the answer carries it in `token`, this once."""
        answer: Json = await self._http.json("POST", "/v1/tokens", json={"subject": subject, "role": role, **options})
        return answer

    def list(self) -> AsyncIterator[Json]:
        return self._http.pages("/v1/tokens", [])

    async def delete(self, token: str) -> None:
        await self._http.json("DELETE", f"/v1/tokens/{segment(token)}")


class Events:
    def __init__(self, http: Http) -> None:
        self._http = http

    def follow(self, *, last_event_id: str | None = None) -> AsyncIterator[ServerEvent]:
        """Yield all events that the token may see; after a break go on with the last one's id."""
        return self._http.events("/v1/events", last_event_id)
