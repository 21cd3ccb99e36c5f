"""Which services there are, and over which adapters the settings put them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gurney.credentials import signed_on
from gurney.documents.choice import documents_of
from gurney.documents.port import Documents
from gurney.errors import Invalid
from gurney.objects.choice import objects_of
from gurney.runtime.choice import runtimes
from gurney.runtime.port import Runtime
from gurney.service import Service
from gurney.settings import Settings
from services.agent.__main__ import build as build_agent
from services.edge.__main__ import build as build_edge
from services.job.__main__ import build as build_job
from services.map.__main__ import build as build_map
from services.notifier.__main__ import build as build_notifier
from services.payload.__main__ import build as build_payload
from services.scheduler.__main__ import build as build_scheduler

#: In the order in which they start; the edge, which asks all others, is first to stop.
SERVICES = ("job", "scheduler", "payload", "map", "notifier", "agent", "edge")
#: Those that own documents.
OWNERS = frozenset(SERVICES) - {"agent"}

Build = Callable[[], Service]


class Composition:
    """The services of one process. They share a database; each has a connection to NATS of its own."""

    def __init__(self, settings: Settings, names: Sequence[str]) -> None:
        """Raises `Invalid` for a service that there is not."""
        if not names or (unknown := [name for name in names if name not in SERVICES]):
            what = f"there is no service {unknown[0]}" if names else "which service"
            raise Invalid(f"{what}: name one or several of {', '.join(SERVICES)}")
        self._settings = settings
        self.names = tuple(name for name in SERVICES if name in names)
        self._documents = documents_of(settings) if OWNERS.intersection(self.names) else None

    def builds(self) -> Mapping[str, Build]:
        """Return how each service is built; once more for each try to start it."""
        return {name: partial(self._build, name) for name in self.names}

    async def close(self) -> None:
        if self._documents:
            await self._documents.close()

    def _build(self, name: str) -> Service:
        settings = signed_on(self._settings, name)
        if name == "agent":
            return build_agent(settings, runtimes=_runtimes(settings))
        return _build_owner(name, settings, self._documents or documents_of(settings))


def _build_owner(name: str, settings: Settings, documents: Documents) -> Service:
    match name:
        case "job":
            return build_job(settings, documents=documents)
        case "scheduler":
            return build_scheduler(settings, documents=documents)
        case "payload":
            return build_payload(settings, documents=documents, objects=objects_of(settings))
        case "map":
            return build_map(settings, documents=documents)
        case "notifier":
            return build_notifier(settings, documents=documents)
        case "edge":
            token = settings.admin_token.get_secret_value() if settings.admin_token else None
            return build_edge(settings, documents=documents, admin_token=token)
    raise ValueError(name)


def _runtimes(settings: Settings) -> list[Runtime]:
    return runtimes(settings)
