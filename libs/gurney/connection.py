"""The connection to nats-server: made in time or with one clear line, and again by itself for ever."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from gurney import telemetry
from gurney.errors import Invalid, NatsUnavailable
from gurney.settings import Settings

OLDEST_SERVER = (2, 12)
CONNECTS_WITHIN_S = 5.0
#: Faults of the connection, as opposed to answers.
AWAY = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionDrainingError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.NoServersError,
    nats.errors.StaleConnectionError,
    nats.js.errors.ServiceUnavailableError,
    TimeoutError,
    OSError,
)

_log = telemetry.log("bus")


class Connection:
    """One connection to nats-server; the client reconnects by itself for ever."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._refused = asyncio.Event()
        self._leaving = False
        self._fault = ""
        self.nats = Client()
        self.js: JetStreamContext = self.nats.jetstream(timeout=settings.request_timeout)
        #: Called after each reconnect.
        self.on_reconnect: list[Callable[[], None]] = []
        #: Set when the server has ended the connection for good: the user or its password is no longer right.
        self.ended = asyncio.Event()

    @property
    def _urls(self) -> list[str]:
        return [each.strip() for each in self._settings.nats_url.split(",")]

    @property
    def _where(self) -> str:
        """Return the addresses without what may be secret in them."""
        parts = [urlsplit(each) for each in self._urls]
        return ", ".join(f"{part.scheme}://{part.netloc.rpartition('@')[2]}" for part in parts)

    async def __aenter__(self) -> Self:
        """Connect; raises `NatsUnavailable`, or `Invalid` for a wrong user or password, with one clear line."""
        try:
            await self._connect()
        except (*AWAY, nats.errors.Error) as error:
            raise NatsUnavailable(f"cannot reach NATS at {self._where}: {self._fault or _short(error)}") from error
        version = self.nats.connected_server_version
        if (version.major, version.minor) < OLDEST_SERVER:
            await self.nats.close()
            raise NatsUnavailable(f"nats-server {version} is too old: 2.12 or later is needed")
        return self

    async def _connect(self) -> None:
        """Connect, or find out that the server does not want us; the client itself would try for ever."""
        trying = asyncio.create_task(self._try())
        refused = asyncio.create_task(self._refused.wait())
        try:
            async with asyncio.timeout(CONNECTS_WITHIN_S):
                await asyncio.wait({trying, refused}, return_when=asyncio.FIRST_COMPLETED)
            if not trying.done():
                user = self._settings.nats_user
                raise Invalid(f"NATS at {self._where} refuses the user {user}: are nats_user and nats_password right?")
            await trying
        except BaseException:
            trying.cancel()
            await asyncio.gather(trying, return_exceptions=True)
            await self.__aexit__()
            raise
        finally:
            refused.cancel()

    def denies(self, subject: str) -> bool:
        """Tell whether the last that the server complained of was that we may not publish there."""
        return f'publish to "{subject}"'.lower() in self._fault.lower()

    async def _try(self) -> None:
        user, password = self._settings.nats_user, self._settings.nats_password
        await self.nats.connect(
            self._urls,
            name=f"gurney-{self._name}",
            user=user,
            password=password.get_secret_value() if password else None,
            inbox_prefix=inbox_prefix(user),
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            connect_timeout=2,
            ping_interval=5,
            max_outstanding_pings=2,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            closed_cb=self._on_closed,
        )

    async def __aexit__(self, *exc: object) -> None:
        """Send what is buffered and disconnect."""
        self._leaving = True
        with contextlib.suppress(*AWAY, nats.errors.Error):
            await asyncio.wait_for(self.nats.flush(), 1)
        # The server may be gone: asyncio of Python 3.12 and later answers a write to a closed socket by TypeError.
        with contextlib.suppress(*AWAY, nats.errors.Error, TypeError):
            await self.nats.close()

    async def _on_error(self, error: Exception) -> None:
        reason = _short(error)
        # It tries again each second, for as long as the server is away.
        tell = _log.debug if reason == self._fault else _log.warning
        tell("nats error", connection=self._name, reason=reason)
        self._fault = reason
        if isinstance(error, nats.errors.AuthorizationError) or "authorization violation" in str(error).lower():
            self._refused.set()

    async def _on_disconnect(self) -> None:
        if not self._leaving:
            _log.info("nats disconnected", connection=self._name)

    async def _on_reconnect(self) -> None:
        _log.info("nats reconnected", connection=self._name)
        self._fault = ""
        for call in self.on_reconnect:
            call()

    async def _on_closed(self) -> None:
        if not self._leaving:
            _log.error("nats connection ended by the server", connection=self._name)
            self.ended.set()


def inbox_prefix(user: str | None) -> str:
    """Return where a user's answers come to: nobody else may listen there."""
    return f"_INBOX_{user}" if user else "_INBOX"


def _short(error: BaseException) -> str:
    return str(error) or type(error).__name__
