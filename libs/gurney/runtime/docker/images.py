"""Images: pinned by digest, pulled, and read without running any of their code (create + copy)."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from docker.errors import APIError
from requests import RequestException

from gurney.errors import ImageUnavailable, MapUnreadable
from gurney.ids import new_id
from gurney.runtime.docker import files, users
from gurney.runtime.docker.container import Image
from gurney.runtime.docker.daemon import Client, Daemon, one_line
from gurney.runtime.docker.house import PREFIX, House
from gurney.runtime.docker.reference import Reference, parse
from gurney.runtime.port import Inspection, Progress, silent

#: Where images have their manifests, by generation, the newer one first.
FOLDERS = ("/etc/holoscan", "/etc/monai")
MANIFESTS = ("app.json", "pkg.json")
MANIFEST_LIMIT = 128 * 1024
INSPECT_LABEL = "gurney.inspect"
#: What a registry says of an image that it has not, or does not show us.
_ABSENT = ("not found", "manifest unknown", "does not exist", "name unknown", "access denied")

Json = Mapping[str, Any]


class _PullError(Exception):
    """The image cannot be pulled."""

    @property
    def is_absent(self) -> bool:
        return any(words in str(self).lower() for words in _ABSENT)


class Images:
    """The images of one daemon."""

    def __init__(self, daemon: Daemon, house: House) -> None:
        self._daemon = daemon
        self._house = house
        self._known: dict[str, Image] = {}

    async def inspect(self, urn: str, *, described: bool, progress: Progress) -> Inspection:
        """Pin and read; raises `MapUnreadable`, `Unavailable` while the daemon is away."""
        try:
            reference = parse(urn)
        except ValueError as error:
            raise MapUnreadable("bad_urn", str(error)) from error
        return await self._daemon.slow(lambda client: self._inspect(client, reference, described, progress))

    async def bring(self, urn: str, digest: str) -> Image:
        """Have the pinned image on this host; raises `ImageUnavailable`, `Unavailable` while the daemon is away."""
        reference = parse(urn)
        found = await self._daemon.quick(lambda client: _find(client, reference, digest))
        if found is None:
            found = await self._daemon.slow(lambda client: _fetch(client, reference, digest))
        known = self._known.get(found["Id"])
        if known is None:
            known = self._known[found["Id"]] = await self._daemon.slow(lambda client: self._facts(client, found))
        return known

    # Blocking

    def _inspect(self, client: Client, reference: Reference, described: bool, progress: Progress) -> Inspection:  # noqa: FBT001
        found = _newest(client, reference, progress)
        with self._created(client, found["Id"]) as container:
            manifests = _manifests(client, container)
        if not manifests and not described:
            raise MapUnreadable("manifest_missing", f"the image {reference} has no app.json in {' or '.join(FOLDERS)}")
        return Inspection(_digest(found, reference), manifests, _command(found))

    def _facts(self, client: Client, found: Json) -> Image:
        config = found.get("Config") or {}
        user = config.get("User") or ""
        if users.is_named(user):
            with self._created(client, found["Id"]) as container:
                uid, gid = users.ids(user, lambda path: files.read(client, container, path, users.LIMIT))
        else:
            uid, gid = users.ids(user, lambda _: None)
        variables = frozenset(each.partition("=")[0] for each in config.get("Env") or ())
        return Image(found["Id"], user, uid, gid, config.get("WorkingDir") or "", variables)

    @contextmanager
    def _created(self, client: Client, image: str) -> Iterator[str]:
        """Make a container that is never started, for as long as it is read."""
        body = {
            "Image": image,
            "Entrypoint": ["/never-run"],
            "Cmd": [],
            "Labels": {**self._house.labels, INSPECT_LABEL: "1"},
            "HostConfig": {"NetworkMode": "none"},
        }
        container = client.make(body, f"{PREFIX}{new_id('ins')}")
        try:
            yield container
        finally:
            with suppress(APIError, RequestException):  # else the next start clears it away
                client.remove_container(container, v=True, force=True)


def _command(found: Json) -> tuple[str, ...]:
    """Return what the image runs by itself."""
    config = found.get("Config") or {}
    return (*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ()))


def _newest(client: Client, reference: Reference, progress: Progress) -> Json:
    """Return the image as its registry has it now; what has no registry, or none that answers, as this host has it."""
    here = client.image(reference.local)
    if here is not None and (reference.digest or not reference.names_registry):
        return here
    try:
        _pull(client, reference.name, reference.digest or reference.tag or "latest", progress)
    except _PullError as error:
        if here is not None:
            return here
        if error.is_absent:
            raise MapUnreadable("not_found", f"there is no image {reference}: {error}") from error
        raise MapUnreadable("image_unavailable", f"the image {reference} cannot be pulled: {error}") from error
    found = client.image(reference.local)
    if found is None:
        raise MapUnreadable("image_unavailable", f"the image {reference} was removed while it was being read")
    return found


def _fetch(client: Client, reference: Reference, digest: str) -> Json:
    try:
        _pull(client, reference.name, digest, silent)
    except _PullError as error:
        raise ImageUnavailable(f"{reference.at(digest)} is not on this host and cannot be pulled: {error}") from error
    found = _find(client, reference, digest)
    if found is None:
        raise ImageUnavailable(f"{reference.at(digest)} is not on this host although it was pulled")
    return found


def _find(client: Client, reference: Reference, digest: str) -> Json | None:
    """Return the pinned image if it is here: pulled, or built here and pinned by its id."""
    return client.image(reference.at(digest)) or client.image(digest)


def _digest(found: Json, reference: Reference) -> str:
    """Return what pins the image: its registry's digest, or its id where it was never in a registry."""
    if reference.digest:
        return reference.digest
    digests = [each.rpartition("@") for each in found.get("RepoDigests") or ()]
    return str(next((digest for name, _, digest in digests if name == reference.name), found["Id"]))


def _pull(client: Client, name: str, tag: str, progress: Progress) -> None:
    layers: dict[str, tuple[int, int]] = {}
    try:
        for line in client.pull(name, tag=tag, stream=True, decode=True):
            if "error" in line:
                raise _PullError(one_line(line["error"]))
            detail = line.get("progressDetail") or {}
            if line.get("status") == "Downloading" and detail.get("total"):
                layers[line["id"]] = (detail.get("current", 0), detail["total"])
                done, total = (sum(each) for each in zip(*layers.values(), strict=True))
                progress("pulling", done, total)
    except APIError as error:
        raise _PullError(one_line(error.explanation or error)) from error
    except json.JSONDecodeError as error:
        raise _PullError("the daemon broke off") from error


def _manifests(client: Client, container: str) -> dict[str, bytes]:
    for folder in FOLDERS:
        left = MANIFEST_LIMIT
        manifests: dict[str, bytes] = {}
        for name in MANIFESTS:
            path = f"{folder}/{name}"
            try:
                content = files.read(client, container, path, left)
            except files.TooLargeError as error:
                size = MANIFEST_LIMIT - left + error.size
                text = f"The manifests have {size} bytes, {MANIFEST_LIMIT} are allowed"
                raise MapUnreadable("manifest_too_large", text) from error
            if content is not None:
                manifests[path] = content
                left -= len(content)
        if f"{folder}/app.json" in manifests:
            return manifests
    return {}
