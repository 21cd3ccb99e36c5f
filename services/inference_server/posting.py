"""What is being posted: nobody knows of it yet, so what its process gives up, or dies with, goes."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from services.inference_server.documents import Numbered


class Posting:
    """What this process is posting; `me`: the process, as others know it."""

    def __init__(self, me: str) -> None:
        self.me = me
        self._ids: set[str] = set()

    @contextmanager
    def of(self, thing: Numbered) -> Iterator[None]:
        """Post a thing while inside, from before it is stored."""
        self._ids.add(thing.id)
        try:
            yield
        finally:
            self._ids.discard(thing.id)

    def given_up(self, thing: Numbered, living: Collection[str]) -> bool:
        """Tell whether nobody posts a thing any more; `living`: the processes that may."""
        return thing.id not in self._ids if thing.poster == self.me else thing.poster not in living
