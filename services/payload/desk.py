"""What all handlers of the service work with, built once."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from gurney.objects.port import Objects
from gurney.store import Store
from services.payload.access import Access, AskAlive
from services.payload.effects import Bell, Deletion, Files, Quiet
from services.payload.repository import Repository


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The parts, by what they are asked for."""

    store: Store
    repository: Repository
    objects: Objects
    access: Access
    files: Files
    deletion: Deletion
    bell: Bell
    quiet: Quiet
    alive: AskAlive
    now: Callable[[], datetime]


def furnish(store: Store, objects: Objects, *, secret: str, alive: AskAlive, now: Callable[[], datetime]) -> Desk:
    """Return the parts over one store; `secret` checks the tokens of runs."""
    repository = Repository(store)
    files = Files(store, repository, objects)
    bell = Bell()
    return Desk(
        store=store,
        repository=repository,
        objects=objects,
        access=Access(store, repository, secret=secret, alive=alive, now=now),
        files=files,
        deletion=Deletion(store, repository, files, now),
        bell=bell,
        quiet=Quiet(repository, files, bell, now),
        alive=alive,
        now=now,
    )
