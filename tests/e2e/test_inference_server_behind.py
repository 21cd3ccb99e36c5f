"""InferenceServer's clients where Gurney is behind a proxy, which has answers of its own while Gurney is away."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.e2e.inference_server import ALIVE, InferenceServer, form, packed, waits
from tests.e2e.servers import Server

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(180)]

HOP = {"Host", "Content-Length", "Transfer-Encoding"}
PROBLEM = '{"code": "internal", "title": "Internal error", "status": 500}'
#: What is answered instead of Gurney: status, content type and body.
ANSWERS = {
    "bad gateway": (502, "text/html", "<h1>Bad gateway</h1>"),
    "unavailable": (503, "text/html", ""),
    "timeout": (504, "text/plain", "timeout"),
    "a fault of its own": (500, "application/problem+json", PROBLEM),
}


class Proxy:
    """Hands on what it is asked; `says`: what it answers itself."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.url = ""
        self.says: tuple[int, str, str] | None = None

    async def handle(self, request: web.Request) -> web.Response:
        if self.says is not None:
            status, kind, text = self.says
            return web.Response(status=status, content_type=kind, text=text)
        headers = {name: value for name, value in request.headers.items() if name not in HOP}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, self._url + request.raw_path, headers=headers, data=await request.read()
            ) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    """A proxy before the server."""
    proxy = Proxy(server.url)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    async with TestServer(app) as listening:
        proxy.url = f"http://127.0.0.1:{listening.port}"
        yield proxy


@pytest.fixture
async def behind(server: Server, proxy: Proxy, tmp_path: Path) -> AsyncIterator[InferenceServer]:
    """A façade that reaches Gurney by the proxy."""
    changes = {"GURNEY_INFERENCE_SERVER_SERVER": proxy.url}
    process = await asyncio.to_thread(lambda: InferenceServer(server, tmp_path, **changes))
    await asyncio.to_thread(process.start)
    yield process
    proxy.says = None
    await process.over()
    await asyncio.to_thread(process.child.stop)


@pytest.mark.req("INF-02", "INF-09")
async def test_a_task_is_alive_whatever_is_answered_for_gurney(
    behind: InferenceServer, proxy: Proxy, tmp_path: Path
) -> None:
    """551 and nothing else, so that no client gives up; then there is its output."""
    uid = await behind.task(await behind.model(), packed(waits(tmp_path / "gate")))
    await behind.until(uid, 2)
    for name, answer in ANSWERS.items():
        proxy.says = answer
        for _ in range(3):
            assert (await behind.public("GET", f"/api/tasks/{uid}")).status == ALIVE, name
    (tmp_path / "gate").touch()
    proxy.says = None
    (await behind.output(uid)).must(200)


@pytest.mark.req("INF-02")
async def test_more_than_gurney_takes_is_refused(behind: InferenceServer, proxy: Proxy) -> None:
    """413 where Gurney takes less than the façade does, and there is no task."""
    model = await behind.model()
    proxy.says = (413, "application/problem+json", '{"code": "too_large", "detail": "at most 1 byte"}')
    path = f"/api/tasks/?model_human_readable_id={model}"
    answer = await behind.public("POST", path, data=form(packed()))
    assert (answer.status, answer.json) == (413, {"detail": "at most 1 byte"})
    proxy.says = None
    assert [task for task in (await behind.private("GET", "/api/tasks/")).json if not task["is_deleted"]] == []
