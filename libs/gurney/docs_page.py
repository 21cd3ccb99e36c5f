"""The page on which people read and try an API: made by a browser from `/openapi.json`, and it works offline."""

from functools import cache
from importlib.resources import files

from aiohttp import web

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@cache
def _text() -> str:
    return files("gurney").joinpath("docs.html").read_text("utf-8")


def page() -> web.Response:
    """Answer with the page. It blocks on a file, once."""
    return web.Response(text=_text(), content_type="text/html", headers={"Content-Security-Policy": POLICY})
