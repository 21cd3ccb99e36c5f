"""Connections of HTTP clients: what the parser refuses is answered as everything else is, a broken body is told."""

import asyncio
from typing import Any

from aiohttp import http, http_exceptions, web

from gurney.settings import KIB
from services.edge.middleware import refused

#: Bytes of a request's target: a path and its filters, escaped. Not the same as `MAX_FIELD`: an error tells them apart.
MAX_LINE = 16 * KIB
#: Bytes of a header, its name and its value.
MAX_FIELD = 8 * KIB

#: Seconds that a client gets at the end to read an answer that came before it had sent its body.
ANSWER_READ_S = 1.0


class Runner(web.AppRunner):
    """Serves an application over connections of this kind."""

    async def _make_server(self) -> web.Server:
        return Connections(await super()._make_server())


class Connections(web.Server):
    """Makes a connection for each client."""

    def __init__(self, server: web.Server) -> None:
        super().__init__(server.request_handler, request_factory=server.request_factory)

    def __call__(self) -> web.RequestHandler:
        options: dict[str, Any] = {"access_log": None, "max_line_size": MAX_LINE, "max_field_size": MAX_FIELD}
        return Connection(self, loop=asyncio.get_running_loop(), auto_decompress=False, **options)


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], http.RawRequestMessage):
            self._end_bodies()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # aiohttp's own
        """End in time: whose request was answered before its body was read only gets the time to read the answer."""
        if self._current_request is None:
            timeout = ANSWER_READ_S
        await super().shutdown(timeout)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never came to a view; the connection ends."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        if isinstance(exc, http_exceptions.HttpProcessingError):
            exc = refusal(exc)
        response = refused(exc if isinstance(exc, Exception) else RuntimeError(f"{status} {message or ''}"))
        response.force_close()
        return response

    def _end_bodies(self) -> None:
        """End the body that was not over when the parser gave up: whoever reads it would wait for ever."""
        bodies = [body for _, body in self._messages]
        if self._current_request:
            bodies.append(self._current_request.content)
        for body in bodies:
            if not body.is_eof():
                body.set_exception(web.RequestPayloadError("malformed"))
                body.feed_eof()


def refusal(error: http_exceptions.HttpProcessingError) -> web.HTTPException:
    """Return what the parser found as an error of HTTP, without the client's own bytes, which may be secret."""
    match error:
        case http_exceptions.LineTooLong() if error.args[1] == MAX_LINE:
            return web.HTTPRequestURITooLong(reason=f"the request target may have {MAX_LINE} bytes")
        case http_exceptions.LineTooLong():
            return web.HTTPRequestHeaderFieldsTooLarge(reason=f"a header may have {MAX_FIELD} bytes")
        case http_exceptions.BadHttpMethod():
            return web.HTTPNotImplemented(reason="the method is none of HTTP, whose methods are written in capitals")
        case http_exceptions.InvalidURLError():
            text = "the request target must be a path or URL in ASCII, other characters percent-encoded"
            return web.HTTPBadRequest(reason=text)
        case _:
            found = error.message.partition(":")[0].partition("\n")[0].rstrip(".")
            return web.HTTPBadRequest(reason=f"the request is not HTTP/1.1 as it should be: {found[:100]}")
