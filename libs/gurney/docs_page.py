"""The page on which people read and try an API. A browser makes it from the `openapi.json` beside it, offline too."""

from functools import cache
from importlib.resources import files

from aiohttp import web

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


PAGE = files("gurney").joinpath("docs.html")


@cache
def _text() -> str:
    return PAGE.read_text("utf-8")


def page() -> web.Response:
    """Answer with the page. It blocks on a file, once."""
    return web.Response(text=_text(), content_type="text/html", headers={"Content-Security-Policy": POLICY})
