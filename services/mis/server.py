"""The listener: `POST /upload/` and `GET /docs`, as MONAI Inference Service has them."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import BodyPartReader, hdrs, web

from gurney import telemetry
from gurney.client import AsyncClient
from gurney.errors import GurneyError, Invalid, RunFailed, RunTimedOut, TooLarge
from gurney.facade import file_part
from services.mis.settings import MisSettings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FIELD = "file"
CHUNK = 1 << 20

BUSY = "Another inference request is being fulfilled; only one is served at a time."
TIMED_OUT = "The inference request timed out after {seconds:g} s; its job was terminated."
FAILED = "The MAP deployed for the inference request failed: {why}"

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>MONAI Inference Service</title>
<h1>MONAI Inference Service</h1>
<p><code>POST {base}/upload/</code> with a zip as the multipart part <code>file</code>: it is unpacked into the input
folder of the MAP, and the answer (200, <code>application/zip</code>) has the output folder. One request at a time.</p>
<p>422: the part is missing, or is no zip. 500: another request is being fulfilled; the request timed out; the MAP
failed. <code>detail</code> says which.</p>
<form action="{base}/upload/" method="post" enctype="multipart/form-data">
<input type="file" name="file" accept=".zip"><button>Run</button></form></html>
"""

_log = telemetry.log("mis")


class Mis:
    """Serves one MAP. `folder`: in which the results lie in the answer."""

    def __init__(self, settings: MisSettings, gurney: AsyncClient, map_id: str, folder: str) -> None:
        self._settings = settings
        self._gurney = gurney
        self._map = map_id
        self._folder = folder
        self._is_busy = False

    def application(self) -> web.Application:
        base = self._settings.base_path
        app = web.Application(middlewares=[_detailed])
        app.router.add_post(f"{base}/upload/", self.upload)
        app.router.add_route("*", f"{base}/upload", self._redirect)
        app.router.add_get(f"{base}/docs", self._docs)
        return app

    async def upload(self, request: web.Request) -> web.StreamResponse:
        """Run the MAP on the part `file`. The server cancels this where the client goes away, and that ends the run."""
        if self._is_busy:
            return _told(500, BUSY)
        self._is_busy = True
        try:
            return await self._run(request)
        finally:
            self._is_busy = False

    async def _run(self, request: web.Request) -> web.StreamResponse:
        found = await file_part(request, FIELD)
        if found is None:
            missing = {"loc": ["body", FIELD], "msg": "field required", "type": "value_error.missing"}
            return web.json_response({"detail": [missing]}, status=422)
        _, part = found
        sent = _Sent(part)
        response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: "application/zip",
                hdrs.CONTENT_DISPOSITION: 'attachment; filename="output.zip"',
            }
        )
        try:
            async with self._gurney.runs.running(
                self._map,
                sent.chunks(),
                wait_s=math.ceil(self._settings.timeout),
                folder=self._folder,
                **self._settings.options,
            ) as results:
                await response.prepare(request)
                async for chunk in results:
                    await response.write(chunk)
                await response.write_eof()
        except GurneyError as error:
            if response.prepared:
                if request.transport is not None:
                    request.transport.abort()  # the status is out: only a broken connection tells the client
                return response
            return self._refused(error, is_broken=sent.is_broken)
        return response

    def _refused(self, error: GurneyError, *, is_broken: bool) -> web.Response:
        """Return what is told of an error of Gurney."""
        match error:
            case _ if is_broken:
                return _told(422, "The request's body broke off, or is malformed.")
            case Invalid() | TooLarge():
                return _told(422, str(error))
            case RunTimedOut():
                return _told(500, TIMED_OUT.format(seconds=self._settings.timeout))
            case RunFailed():
                code = "" if error.exit_code is None else f"exit code {error.exit_code}, "
                return _told(500, FAILED.format(why=f"{code}{error.reason}. {error}"))
            case _:
                _log.warning("run refused", error=error)
                return _told(500, f"The inference request could not be fulfilled: {error}")

    async def _redirect(self, _: web.Request) -> web.Response:
        return web.Response(status=307, headers={hdrs.LOCATION: f"{self._settings.base_path}/upload/"})

    async def _docs(self, _: web.Request) -> web.Response:
        return web.Response(text=PAGE.format(base=self._settings.base_path), content_type="text/html")


class _Sent:
    """The bytes of a part, as they come."""

    def __init__(self, part: BodyPartReader) -> None:
        self._part = part
        self.is_broken = False

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await self._part.read_chunk(CHUNK):
                yield chunk
        except asyncio.CancelledError:
            raise
        except Exception:
            self.is_broken = True
            raise


@web.middleware
async def _detailed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what is refused before a handler as the rest is, and log each answer: no name, no content."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        response = _told(error.status, error.reason)
        response.headers.update({name: error.headers[name] for name in ("Allow",) if name in error.headers})
    _log.info("request", method=request.method, status=response.status)
    return response


def _told(status: int, detail: str) -> web.Response:
    return web.json_response({"detail": detail}, status=status)
