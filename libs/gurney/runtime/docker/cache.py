"""The images that we pulled, and which of them go when they take too much room.

`docker/images.json` names each by repository and digest, with its size and when it was last used. It is written before
the pull, so that what a crash leaves in between is ours, too. What was here before we came, or has got a tag since, is
the site's: never noted, never removed. Only our own reference is removed, and without force, so that the daemon keeps
an image that any container has, or that has another name.
"""

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from docker.errors import APIError

from gurney import clock, telemetry
from gurney.errors import GurneyError
from gurney.runtime.docker.daemon import Client, Daemon

#: Seconds between two looks at what is there and in use.
PERIOD_S = 60.0
#: Seconds for which an image stays that a run was promised which has not begun: its input may take that long.
PROMISE_S = 900.0
_ABSENT, _IN_USE = 404, 409

_log = telemetry.log("agent")


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that we pulled, or are about to."""

    #: When it was last used, by the wall clock.
    used: float
    #: Bytes, those included that it shares with others; 0: not known yet.
    size: int = 0


_NOT_OURS = Pulled(used=0.0)


@dataclass(frozen=True, slots=True)
class Stock:
    """What the daemon has of our images."""

    asked: Collection[str]
    #: Reference -> bytes.
    there: Mapping[str, int]
    #: Those that a container has, whoever's it is.
    in_use: Collection[str]


def surplus(pulled: Mapping[str, Pulled], limit: int, busy: Collection[str]) -> list[str]:
    """Return the images that go so that the others fit, least recently used first; `busy` ones stay. Pure."""
    left = sum(each.size for each in pulled.values())
    gone = []
    for name, each in sorted(pulled.items(), key=lambda item: item[1].used):
        if left <= limit:
            break
        if name not in busy:
            gone.append(name)
            left -= each.size
    return gone


class Cache:
    """The images of one daemon that are ours. `run` is its task; what blocks is said to."""

    def __init__(self, daemon: Daemon, folder: Path, limit: int) -> None:
        """`limit`: bytes; 0: none."""
        self._daemon = daemon
        self._path = folder / "images.json"
        self._limit = limit
        self._pulled: dict[str, Pulled] = {}
        self._lock = threading.Lock()
        self._is_changed = False
        #: What is in use: images by starts that are under way, whole repositories by inspections.
        self._held: Counter[str] = Counter()
        self._promised: dict[str, float] = {}
        self._leaving: dict[str, asyncio.Event] = {}
        self._has_news = False
        self._look = asyncio.Event()

    def open(self) -> None:
        """Read what was noted. Blocks."""
        try:
            self._pulled = {name: Pulled(**each) for name, each in json.loads(self._path.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._pulled = {}

    @asynccontextmanager
    async def using(self, what: str) -> AsyncIterator[None]:
        """Keep an image, or all images of a repository, for as long as the context."""
        self._held[what] += 1
        try:
            while leaving := [left for name, left in self._leaving.items() if what in _scopes(name)]:
                await leaving[0].wait()
            yield
        finally:
            self._held[what] -= 1
            self._held = +self._held
            if self._has_news:
                self._look.set()

    def promise(self, name: str) -> None:
        """Keep an image for a run that is to begin soon."""
        self._promised[name] = clock.monotonic() + PROMISE_S

    def last_used(self, names: Collection[str]) -> float:
        """Return when an image of these names was last used, by the wall clock; 0 where it is not ours."""
        return max((self._pulled.get(name, _NOT_OURS).used for name in names), default=0.0)

    # --- notes: from any thread ---

    def expect(self, name: str) -> None:
        """Note durably that an image which is not here is about to be pulled. Blocks."""
        with self._lock:
            self._pulled[name] = Pulled(clock.now().timestamp())
            self._write(durable=True)

    def arrived(self, name: str, size: int) -> None:
        """Note that it was pulled. Blocks."""
        with self._lock:
            self._pulled[name] = Pulled(clock.now().timestamp(), size)
            self._has_news = self._is_changed = True

    def touch(self, names: Collection[str]) -> None:
        """Note that images are used; what is not ours is let alone. Blocks."""
        now = clock.now().timestamp()
        with self._lock:
            for name in self._pulled.keys() & set(names):
                self._pulled[name] = replace(self._pulled[name], used=now)
                self._is_changed = True

    def _write(self, *, durable: bool) -> None:
        draft = self._path.with_suffix(".tmp")
        with draft.open("w") as file:
            json.dump({name: {"used": each.used, "size": each.size} for name, each in self._pulled.items()}, file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(self._path)
        self._is_changed = False

    def _keep(self) -> None:
        with self._lock, suppress(OSError):  # on a full disk the order is lost, no more
            if self._is_changed:
                self._write(durable=False)

    # --- room ---

    async def run(self) -> None:
        """Look after each pull and once in a while, for as long as it runs."""
        while True:
            self._look.clear()
            self._has_news = False
            try:
                await self.trim()
            except GurneyError as error:
                _log.info("images are not looked at", error=error)
            except Exception:  # whatever it was: the next look is the remedy
                _log.exception("looking at images failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._look.wait()

    async def trim(self) -> None:
        """Hold what is noted against what is there, and let go of what is too much. Raises `Unavailable`, `Refused`."""
        names = [*self._pulled]
        if not names:
            return
        stock = await self._daemon.slow(lambda client: _stock(client, names))
        pulled = await self._daemon.aside(lambda: self._settle(stock))
        busy = {name for name in pulled if name in stock.in_use or self._is_kept(name)}
        for name in surplus(pulled, self._limit, busy) if self._limit else ():
            await self._remove(name)
        await self._daemon.aside(self._keep)

    def _is_held(self, name: str) -> bool:
        return not self._held.keys().isdisjoint(_scopes(name))

    def _is_kept(self, name: str) -> bool:
        return self._is_held(name) or self._promised.get(name, 0.0) > clock.monotonic()

    def _settle(self, stock: Stock) -> dict[str, Pulled]:
        """Learn how large images are, forget what is gone or the site's, and return the others.

        What is being pulled is let alone.
        """
        self.touch(stock.in_use)
        with self._lock:
            for name in stock.asked:
                if name in stock.there and name in self._pulled:
                    self._pulled[name] = replace(self._pulled[name], size=stock.there[name])
                elif not self._is_held(name):
                    self._pulled.pop(name, None)
            self._is_changed = True
            return dict(self._pulled)

    async def _remove(self, name: str) -> None:
        """Remove an image that nobody has begun to use meanwhile; who begins now waits until it is gone."""
        if self._is_kept(name):
            return
        self._leaving[name] = left = asyncio.Event()
        try:
            await self._daemon.slow(lambda client: self._removed(client, name))
        finally:
            del self._leaving[name]
            left.set()

    def _removed(self, client: Client, name: str) -> None:
        try:
            client.remove_image(name)
        except APIError as error:
            if error.status_code == _IN_USE:
                return
            if error.status_code != _ABSENT:
                raise
        with self._lock:
            image = self._pulled.pop(name, None)
            self._is_changed = True
        _log.info("an image went to make room", image=name, size=image and image.size)


def _repository(name: str) -> str:
    return name.rpartition("@")[0]


def _scopes(name: str) -> tuple[str, str]:
    """Return by what an image may be held."""
    return name, _repository(name)


def _stock(client: Client, names: Collection[str]) -> Stock:
    """Return what the daemon has of these, but for what has a tag of its repository: that is the site's by now."""
    used = {each["ImageID"] for each in client.containers(all=True)}
    there: dict[str, int] = {}
    in_use: set[str] = set()
    images: list[dict[str, Any]] = client.images()
    for image in images:
        tagged = {_untagged(tag) for tag in image.get("RepoTags") or ()}
        ours = {*(image.get("RepoDigests") or ())} & {*names}
        found = {name for name in ours if _repository(name) not in tagged}
        there |= dict.fromkeys(found, int(image["Size"]))
        if image["Id"] in used:
            in_use |= found
    return Stock(names, there, in_use)


def _untagged(tag: str) -> str:
    return tag.rpartition(":")[0]
