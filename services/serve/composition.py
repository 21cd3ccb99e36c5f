"""Which services there are, and over which adapters the settings put them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gurney.credentials import signed_on
from gurney.documents.choice import documents_of
from gurney.documents.port import Documents
from gurney.errors import Invalid
from gurney.service import Service
from gurney.settings import Settings

#: In the order in which they start; the edge, which asks all others, is first to stop.
SERVICES = ("job", "scheduler", "payload", "map", "notifier", "agent", "edge")
#: Those that own documents.
OWNERS = frozenset(SERVICES) - {"agent"}

Build = Callable[[], Service]


class Composition:
    """The services of one process. They share a database; each has a connection to NATS of its own."""

    def __init__(self, settings: Settings, names: Sequence[str]) -> None:
        """Raises `Invalid` for a service that there is not, and for documents that only one process may use."""
        if not names or (unknown := [name for name in names if name not in SERVICES]):
            what = f"there is no service {unknown[0]}" if names else "which service"
            raise Invalid(f"{what}: name one or several of {', '.join(SERVICES)}")
        self._settings = settings
        self.names = tuple(name for name in SERVICES if name in names)
        owners = OWNERS.intersection(self.names)
        if owners and settings.mongo_url is None:
            raise Invalid("mongo_url is not set: documents in a file are for one process alone, which is `gurney up`")
        self._documents = documents_of(settings) if owners else None

    def builds(self) -> Mapping[str, Build]:
        """Return how each service is built; once more for each try to start it."""
        return {name: partial(self._build, name) for name in self.names}

    async def close(self) -> None:
        if self._documents:
            await self._documents.close()

    def _build(self, name: str) -> Service:
        settings = signed_on(self._settings, name)
        if name == "agent":
            return _build_agent(settings)
        return _build_owner(name, settings, self._documents or documents_of(settings))


# What a process does not serve it does not import: half of the time that a start takes.


def _build_agent(settings: Settings) -> Service:
    from gurney.runtime.choice import runtimes
    from services.agent.__main__ import build

    return build(settings, runtimes=runtimes(settings))


def _build_owner(name: str, settings: Settings, documents: Documents) -> Service:
    match name:
        case "job":
            from services.job.__main__ import build as build_job

            return build_job(settings, documents=documents)
        case "scheduler":
            from services.scheduler.__main__ import build as build_scheduler

            return build_scheduler(settings, documents=documents)
        case "payload":
            from gurney.objects.choice import objects_of
            from services.payload.__main__ import build as build_payload

            return build_payload(settings, documents=documents, objects=objects_of(settings))
        case "map":
            from services.map.__main__ import build as build_map

            return build_map(settings, documents=documents)
        case "notifier":
            from services.notifier.__main__ import build as build_notifier

            return build_notifier(settings, documents=documents)
        case "edge":
            from services.edge.__main__ import build as build_edge

            token = settings.admin_token.get_secret_value() if settings.admin_token else None
            return build_edge(settings, documents=documents, admin_token=token)
    raise ValueError(name)
