"""Where the server is and who asks: options, environment, or the embedded server's data folder."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import platformdirs
from cyclopts import Parameter

from gurney.client import AsyncClient
from gurney.errors import Unauthorized, Unavailable


def default_data() -> Path:
    """Return the platform's user data folder for Gurney."""
    return Path(platformdirs.user_data_dir("gurney", appauthor=False))


@Parameter(name="*")
@dataclass
class Server:
    """Options of every command that talks to a server."""

    url: Annotated[str | None, Parameter(env_var="GURNEY_URL", group="Server")] = None
    """URL of the server; by default the embedded server of the data folder."""
    token: Annotated[str | None, Parameter(env_var="GURNEY_TOKEN", group="Server")] = None
    """Access token; by default the one in the data folder."""
    data: Annotated[Path | None, Parameter(env_var="GURNEY_DATA", group="Server")] = None
    """Data folder of the embedded server."""
    json: Annotated[bool, Parameter(negative=(), group="Server")] = False
    """Print JSON for machines."""

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """Connect; raises with one plain line where server or token cannot be found."""
        async with AsyncClient(self._url(), self._token()) as client:
            yield client

    def _folder(self) -> Path:
        return self.data or default_data()

    def _url(self) -> str:
        if self.url:
            return self.url
        found = _read(self._folder() / "url")
        if found is None:
            raise Unavailable(f"no server runs on {self._folder()}: start one by `gurney up`, or give --url")
        return found

    def _token(self) -> str:
        token = self.token or _read(self._folder() / "token")
        if token is None:
            raise Unauthorized(f"there is no token in {self._folder()}: give --token or GURNEY_TOKEN")
        return token


#: The options where none are given.
HERE = Server()


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
