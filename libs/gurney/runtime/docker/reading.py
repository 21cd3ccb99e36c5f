"""The containers by which images are read: gone after use, and known while in use, so that all others are orphans."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from docker.errors import APIError
from requests import RequestException

from gurney.ids import new_id
from gurney.runtime.docker import files, users
from gurney.runtime.docker.daemon import Client
from gurney.runtime.docker.house import PREFIX, House, silenced

INSPECT_LABEL = "gurney.inspect"


class Readers:
    """Those of one house. All of it blocks."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._names: set[str] = set()

    def clear(self, client: Client) -> None:
        """Remove what earlier readings left: their containers, and volumes that no container has any more."""
        for each in client.containers(all=True, filters={"label": [self._house.filter, f"{INSPECT_LABEL}=1"]}):
            if not any(name.lstrip("/") in self._names for name in each["Names"]):
                _remove(client, each["Id"])
        for volume in client.volumes({"label": self._house.filter, "dangling": True})["Volumes"] or ():
            with suppress(APIError):  # one that was in use when the daemon was killed goes at the daemon's next start
                client.remove_volume(volume["Name"])

    @property
    def labels(self) -> dict[str, str]:
        """What is ours to clear away."""
        return {**self._house.labels, INSPECT_LABEL: "1"}

    @contextmanager
    def of_image(self, client: Client, image: Mapping[str, Any]) -> Iterator[str]:
        """Make a container that is never started, for as long as files are read out of it."""
        body = {
            "Image": image["Id"],
            "Entrypoint": ["/never-run"],
            "Cmd": [],
            "Labels": silenced((image.get("Config") or {}).get("Labels") or ()),
            "HostConfig": {"NetworkMode": "none"},
        }
        with self.made(client, body) as container:
            yield container

    @contextmanager
    def made(self, client: Client, body: Mapping[str, Any]) -> Iterator[str]:
        """Make a container; whatever becomes of it, it goes with the context, its volumes too."""
        name = f"{PREFIX}{new_id('ins')}"
        self._names.add(name)
        try:
            container = client.make({**body, "Labels": {**body.get("Labels", {}), **self.labels}}, name)
            try:
                yield container
            finally:
                with suppress(RequestException):  # the daemon is away: it is an orphan when it is back
                    _remove(client, container)
        finally:
            self._names.discard(name)


def _remove(client: Client, container: str) -> None:
    with suppress(APIError):
        client.remove_container(container, v=True, force=True)


def user_of(client: Client, reader: str, user: str) -> tuple[int, int]:
    """Return user and group id of an image's user; files that are too long to be believed know nobody."""

    def read(path: str) -> bytes | None:
        with suppress(files.TooLargeError):
            return files.read(client, reader, path, users.LIMIT)
        return None

    return users.ids(user, read)
