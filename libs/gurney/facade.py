"""What speaks older systems' HTTP in front of Gurney: a client of its API, with settings and listeners of its own.

A façade is served alone (`gurney serve mis`). What it may do is bounded by the token that its deployment gives it.
"""

import asyncio
import contextlib
import fcntl
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from aiohttp import BodyPartReader, ClientPayloadError, MultipartReader, web
from aiohttp.http_exceptions import BadHttpMessage
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gurney import telemetry
from gurney.client import AsyncClient
from gurney.clock import monotonic
from gurney.errors import AlreadyRunning, Invalid, Unavailable
from gurney.model.common import Health
from gurney.settings import Settings, secrets
from gurney.watch import Checks, WatchServer, checked

#: Seconds between two tries to reach Gurney at the start.
PAUSE_S = 0.5
#: What a multipart body that breaks off, or is none, may raise.
BROKEN = (ValueError, BadHttpMessage, ClientPayloadError, ConnectionError)
#: Seconds that an open request gets at the end.
SHUTDOWN_S = 10.0

T = TypeVar("T")

_log = telemetry.log("facade")


class FacadeSettings(BaseSettings):
    """What every façade is told: variables that begin with its prefix, secrets in the folder of secrets, too."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    server: str = Field(default="http://127.0.0.1:8350", pattern=r"^https?://[^/?#@]+/?$")
    """Where Gurney listens."""
    token: SecretStr = Field(min_length=1)
    """Token of a developer there."""

    @classmethod
    def load(cls) -> Self:
        """Return what the environment says; raises `Invalid` with one line that names each variable at fault."""
        try:
            return cls()
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            told = (f"{cls._variable(each['loc'])}{each['msg']}" for each in faults)
            raise Invalid("; ".join(told)) from None

    @classmethod
    def _variable(cls, loc: tuple[int | str, ...]) -> str:
        """Return how the line about a fault begins; what is wrong with the whole names no variable."""
        return f"{cls.model_config['env_prefix']}{str(loc[0]).upper()}: " if loc else ""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        return (init_settings, env_settings, *secrets(settings_cls))


class Facade:
    """What those see who watch over a façade: whether it serves, and what it stands on."""

    def __init__(self) -> None:
        self.ready = False
        self._checks: Checks = {}

    async def health(self) -> Health:
        return await checked(self._checks)

    async def serve(self, checks: Checks) -> None:
        """Be ready where these parts are there, until cancelled."""
        self.ready, self._checks = True, checks
        try:
            await asyncio.Event().wait()
        finally:
            self.ready = False


@contextlib.asynccontextmanager
async def watched(settings: Settings, name: str) -> AsyncIterator[Facade]:
    """Tell those who watch of a façade, from its start on, where the settings name a port for them."""
    found = Facade()
    async with contextlib.AsyncExitStack() as stack:
        if settings.metrics_port is not None:
            await stack.enter_async_context(WatchServer(settings, {name: found}))
        yield found


async def answers(gurney: AsyncClient) -> None:
    """Raise where Gurney does not answer this token. It is asked every few seconds: nobody wants a trace of that."""
    with telemetry.span("watch", telemetry.INTERNAL, quiet=True):
        await gurney.whoami()


def until_signal(main: Coroutine[Any, Any, None]) -> None:
    """Run `main`, and cancel it at SIGINT or SIGTERM; one more while it ends does not disturb it."""

    async def run() -> None:
        serving = asyncio.create_task(main)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: serving.cancelling() or serving.cancel())
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    asyncio.run(run())


async def once_there(ask: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Return what `ask` returns; a server that is away is asked again for a while."""
    deadline = monotonic() + patience_s
    while True:
        try:
            return await ask()
        except Unavailable as error:
            if monotonic() >= deadline:
                raise
            _log.info("waits", reason=error.code)
        await asyncio.sleep(PAUSE_S)


@contextlib.asynccontextmanager
async def listening(app: web.Application, host: str, port: int, **options: Any) -> AsyncIterator[tuple[str, int]]:
    """Serve an application; yields where. Raises `Unavailable` where that address is not to be had."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, **options)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        yield runner.addresses[0][:2]
    finally:
        await runner.cleanup()


async def file_part(request: web.Request, name: str) -> tuple[MultipartReader, BodyPartReader] | None:
    """Return the file of this name in a multipart body, to be read, and the body's reader; None where there is none."""
    if not request.content_type.startswith("multipart/"):
        return None
    try:
        reader = await request.multipart()
        async for part in reader:
            if isinstance(part, BodyPartReader) and part.name == name and part.filename is not None:
                return reader, part
    except BROKEN:
        return None
    return None


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Hold a folder that is this process's alone; raises `AlreadyRunning` while another has it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another process has {folder}") from None
        yield


def say(line: str) -> None:
    """Tell people who started the process."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
