"""`gurney serve inference-server`: models and tasks for InferenceServer's clients, until a signal."""

import asyncio
import contextlib
import socket
from functools import partial

from gurney import facade, telemetry
from gurney.client import AsyncClient
from gurney.documents.choice import documents_of
from gurney.documents.port import Query
from gurney.errors import Invalid
from gurney.ids import new_asker
from gurney.settings import Settings
from gurney.store import Store
from services.inference_server.call import Server
from services.inference_server.keeper import Keeper
from services.inference_server.models import Models
from services.inference_server.near import is_near
from services.inference_server.posting import Posting
from services.inference_server.repository import ALL, COUNTERS
from services.inference_server.server import application
from services.inference_server.settings import PREFIX, InferenceServerSettings
from services.inference_server.steps import Steps
from services.inference_server.stock import Stock
from services.inference_server.tasks import Tasks

#: A question that any database answers at once.
ONE = Query(sort=("id",), limit=1)
#: Most bytes of a request's first line: in its query a model has its description.
LINE = 1 << 20


def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. Raises what it cannot start for."""
    telemetry.setup(settings, "inference-server")
    mine = InferenceServerSettings.load()
    _require_near(mine)
    facade.until_signal(_serve(mine, settings))
    return 0


async def _serve(mine: InferenceServerSettings, settings: Settings) -> None:
    async with contextlib.AsyncExitStack() as stack:
        settings = settings.model_copy(update={"data": mine.data.absolute()})
        if settings.mongo_url is None:
            stack.enter_context(facade.folder_locked(settings.data))
        documents = documents_of(settings)
        stack.push_async_callback(documents.close)
        gurney = await stack.enter_async_context(AsyncClient(mine.server, mine.token.get_secret_value()))
        watched = await stack.enter_async_context(facade.watched(settings, "inference-server"))
        await facade.once_there(lambda: documents.open(ALL), settings.start_timeout)
        store, stock = Store(documents, None), Stock(gurney)
        posting = Posting(new_asker())
        models = Models(store, gurney, stock, mine, posting=posting)
        steps = Steps(store, gurney, stock, models, mine)
        keeper = Keeper(store, gurney, models, steps, posting=posting)
        tasks = Tasks(store, gurney, stock, steps, keeper, posting=posting)
        server = Server(mine, settings.max_upload, store, models, tasks)
        await facade.once_there(gurney.whoami, settings.start_timeout)
        keeping = asyncio.create_task(keeper.run())
        stack.push_async_callback(_ended, keeping)
        for listener in mine.listeners:
            host, port = getattr(mine, f"{listener}_host"), getattr(mine, f"{listener}_port")
            listening = facade.listening(application(server, listener), host, port, max_line_size=LINE)
            found = await stack.enter_async_context(listening)
            facade.say(f"Gurney serves inference-server, {listener}, on http://{found[0]}:{found[1]}")
        await watched.serve(
            {"documents": partial(documents.find, COUNTERS, ONE), "gurney": partial(facade.answers, gurney)}
        )


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _require_near(mine: InferenceServerSettings) -> None:
    """Raise `Invalid` where others than a private network could reach the private listener."""
    if "private" not in mine.listeners:
        return
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(mine.private_host, None)}
    except OSError as error:
        raise Invalid(f"{PREFIX}PRIVATE_HOST: {mine.private_host}: {error.strerror or error}") from None
    if not all(map(is_near, found)):
        raise Invalid(f"{PREFIX}PRIVATE_HOST: {mine.private_host} is no address of a private network")
