"""A way to an S3 server on which requests and answers get lost, as a test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

from gurney.objects.calls import Body
from gurney.objects.pieces import Piece

#: What becomes of a request: passed on; done and its answer lost; lost itself; or answered with this status.
Fate = Literal["pass", "answer lost", "lost", "503", "403"]


@dataclass
class Way:
    """Passes requests on to `target`, unless `fate` says otherwise of one."""

    target: str
    url: str = ""
    fate: Callable[[web.Request], Fate] = lambda _: "pass"
    #: Method and query of every request that came, without what the signature adds.
    seen: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    #: Bytes of a body that pass before the connection breaks; None: all.
    breaks_after: int | None = None
    #: Of a request whose client has gone, aiohttp forgets the task.
    handling: set[asyncio.Task[object]] = field(default_factory=set)

    def fail(self, method: str, named: str | None, *fates: Fate) -> None:
        """Give the next requests of this method, with this in their query, these fates one by one."""
        left = list(fates)

        def fate(request: web.Request) -> Fate:
            hit = request.method == method and (named is None or named in request.query)
            return left.pop(0) if hit and left else "pass"

        self.fate = fate

    def fail_each(self, method: str, named: str, fate: Fate) -> set[str]:
        """Give the first request of this method for each value of this in their query this fate; returns the values."""
        failed: set[str] = set()

        def once(request: web.Request) -> Fate:
            value = request.query.get(named)
            if request.method != method or value is None or value in failed:
                return "pass"
            failed.add(value)
            return fate

        self.fate = once
        return failed

    def count(self, method: str, named: str | None = None) -> int:
        return sum(each == method and (named is None or named in query) for each, query in self.seen)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self.handling.add(task)
        task.add_done_callback(self.handling.discard)
        fate = self.fate(request)
        self.seen.append((request.method, frozenset(key for key in request.query if not key.startswith("X-Amz-"))))
        if fate == "lost":
            return self._cut(request)
        if fate in {"503", "403"}:
            await request.read()
            return web.Response(status=int(fate), text="<Error></Error>")
        return await self._passed_on(request, lose=fate == "answer lost")

    async def _passed_on(self, request: web.Request, *, lose: bool) -> web.StreamResponse:
        content = await request.read()
        body = Body(Piece.of([content])) if content else None
        try:
            async with aiohttp.ClientSession(auto_decompress=False) as session:
                return await self._answered(session, request, body, lose=lose)
        finally:
            if body is not None:  # closed in order it would wait until the store has read all, and outlive the test
                body.cut()

    async def close(self) -> None:
        """Break off what is still passed on."""
        for task in self.handling:
            task.cancel()
        if self.handling:
            await asyncio.wait(self.handling)

    async def _answered(
        self, session: aiohttp.ClientSession, request: web.Request, body: Body | None, *, lose: bool
    ) -> web.StreamResponse:
        url = URL(self.target + request.raw_path, encoded=True)
        async with session.request(request.method, url, headers=request.headers, data=body) as answer:
            content = await answer.read()
            if lose:
                return self._cut(request)
            kept = ("ETag", "Content-Range", "Last-Modified")
            headers = {name: answer.headers[name] for name in kept if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=headers)
            response.content_length = int(answer.headers.get("Content-Length", "0"))
            await response.prepare(request)
            if self.breaks_after is not None and len(content) > self.breaks_after:
                await response.write(content[: self.breaks_after])
                return self._cut(request)
            await response.write(content)
            return response

    def _cut(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError


@asynccontextmanager
async def a_way_to(target: str) -> AsyncIterator[Way]:
    """Serve on a free loopback port."""
    way = Way(target)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", way.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    way.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield way
    finally:
        await runner.cleanup()
        await way.close()
        await asyncio.sleep(0.1)  # what was cut on either side closes in rounds of the loop to come
