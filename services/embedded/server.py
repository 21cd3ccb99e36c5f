"""Composition of the embedded server: which services, over which adapters, in which order."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from gurney.connection import Connection
from gurney.documents.sqlite import SqliteDocuments
from gurney.objects.folder import FolderObjects
from gurney.runtime.choice import runtimes
from gurney.service import Service
from gurney.settings import Settings
from services.agent.__main__ import build as build_agent
from services.edge.__main__ import build as build_edge
from services.embedded.folder import DataFolder
from services.embedded.nats_server import NatsServer
from services.job.__main__ import build as build_job
from services.map.__main__ import build as build_map
from services.notifier.__main__ import build as build_notifier
from services.payload.__main__ import build as build_payload
from services.scheduler.__main__ import build as build_scheduler

#: Settings of which one host of one person expects something else than a site, where nothing is said.
_DEFAULTS = {"events_max_messages": 20_000, "webhook_private": "loopback"}


class EmbeddedServer:
    """Everything in one process, as a context: inside, it serves."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = DataFolder(settings.data.absolute())
        self._stack = contextlib.AsyncExitStack()
        self.url = ""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self.folder.locked())
            token = self.folder.secret("token", "gurney_")
            nats = await stack.enter_async_context(NatsServer(self.folder.nats))
            settings = self._with_secrets(nats)
            documents = SqliteDocuments(self.folder.documents, sync=settings.sync)
            stack.push_async_callback(documents.close)
            objects = FolderObjects(self.folder.objects)
            found = await asyncio.to_thread(runtimes, settings)
            services: list[Service] = [
                build_job(settings, documents=documents),
                build_scheduler(settings, documents=documents, alone=True),
                build_payload(settings, documents=documents, objects=objects, alone=True),
                build_map(settings, documents=documents),
                build_notifier(settings, documents=documents, alone=True),
                build_agent(settings, runtimes=found, alone=True),
            ]
            edge = build_edge(settings, documents=documents, admin_token=token)
            connection = await stack.enter_async_context(Connection(settings, "embedded"))
            for service in (*services, edge):  # one socket carries all: every write and wake-up serves several
                service.bus.share(connection)
            for service in services:
                await stack.enter_async_context(service)
            for service in services:  # the first round came before all others served
                service.reconcile_soon()
            await stack.enter_async_context(edge)
            self.url = edge.url
            self.folder.address.write_text(f"{self.url}\n")
            stack.callback(self.folder.address.unlink, missing_ok=True)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def _with_secrets(self, nats: NatsServer) -> Settings:
        return self._settings.model_copy(
            update={
                "data": self.folder.root,
                "nats_url": nats.url,
                "nats_user": nats.user,
                "nats_password": SecretStr(nats.password),
                "run_secret": SecretStr(self.folder.secret("run-secret")),
                **{name: value for name, value in _DEFAULTS.items() if name not in self._settings.model_fields_set},
            }
        )
