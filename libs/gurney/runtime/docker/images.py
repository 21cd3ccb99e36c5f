"""Images: pinned by digest, pulled, and read without running any of their code, where they have manifests."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gurney.errors import ImageUnavailable, MapUnreadable
from gurney.runtime.docker import manifests, users
from gurney.runtime.docker.cache import Cache
from gurney.runtime.docker.container import Image
from gurney.runtime.docker.daemon import Client, Daemon
from gurney.runtime.docker.export import export
from gurney.runtime.docker.reading import Readers, user_of
from gurney.runtime.docker.reference import Reference, parse
from gurney.runtime.docker.registries import Registries, RegistryError
from gurney.runtime.port import Inspection, Progress, silent

Json = Mapping[str, Any]


class Images:
    """The images of one daemon."""

    def __init__(self, daemon: Daemon, readers: Readers, registries: Registries, cache: Cache) -> None:
        self._daemon = daemon
        self._readers = readers
        self._registries = registries
        self._cache = cache
        self._known: dict[str, Image] = {}

    async def inspect(self, urn: str, *, described: bool, progress: Progress) -> Inspection:
        """Pin and read; raises `MapUnreadable`, `Unavailable` while the daemon is away."""
        try:
            reference = parse(urn)
        except ValueError as error:
            raise MapUnreadable("bad_urn", str(error)) from error
        async with self._cache.using(reference.familiar):
            return await self._daemon.slow(lambda client: self._inspect(client, reference, described, progress))

    @asynccontextmanager
    async def brought(self, urn: str, digest: str) -> AsyncIterator[Image]:
        """Have the pinned image on this host, where it stays for as long as the context.

        Raises `ImageUnavailable`, `Unavailable` while the daemon is away.
        """
        pinned = parse(urn).at(digest)
        async with self._cache.using(pinned.listed):
            found = await self._daemon.quick(lambda client: self._find(client, pinned))
            if found is None:
                found = await self._daemon.slow(lambda client: self._fetch(client, pinned))
            image = found
            known = self._known.get(image["Id"])
            if known is None:
                known = self._known[image["Id"]] = await self._daemon.slow(lambda client: self._facts(client, image))
            yield known

    async def promise(self, urn: str, digest: str) -> None:
        """Have the pinned image here for a run that is to begin soon; raises as `brought` does."""
        async with self.brought(urn, digest):
            self._cache.promise(parse(urn).at(digest).listed)

    async def held(self) -> list[str]:
        """Return by what images that are here may be pinned: those that we pulled by their last use, then the young.

        Raises `Refused`, `Unavailable` while the daemon is away.
        """
        images: list[Json] = await self._daemon.slow(lambda client: client.images())
        images.sort(key=lambda image: (self._cache.last_used(_pinned(image)), image["Created"]), reverse=True)
        return [digest for image in images for digest in pins(image)]

    # Blocking

    def _inspect(self, client: Client, reference: Reference, described: bool, progress: Progress) -> Inspection:  # noqa: FBT001
        found, digest = self._newest(client, reference, progress)
        with self._readers.of_image(client, found) as reader:
            read = manifests.read(client, reader)
            if not read and not described:
                progress("exporting", 0, None)
                read = export(client, self._readers, found, reader)
        return Inspection(digest, read, _command(found))

    def _newest(self, client: Client, reference: Reference, progress: Progress) -> tuple[Json, str]:
        """Return the image as its registry has it now, and its digest.

        What has no registry, or none that answers, is as this host has it; so is what was built here for one that
        lets nobody see it.
        """
        here = client.image(reference.local)
        if here is not None and (reference.digest or not reference.names_registry):
            return here, _digest(here, reference)
        try:
            digest = reference.digest or self._registries.digest(client, reference)
            return self._have(client, reference.at(digest), progress), digest
        except RegistryError as error:
            if here is not None and (error.code != "registry_denied" or _digest(here, reference) == here["Id"]):
                return here, _digest(here, reference)
            raise MapUnreadable(error.code, str(error)) from error

    def _find(self, client: Client, pinned: Reference) -> Json | None:
        """Return the pinned image if it is here: pulled, or built here and pinned by its id."""
        found = client.image(pinned.local)
        if found is not None:
            self._cache.touch([pinned.listed])
            return found
        return client.image(pinned.digest or "")

    def _fetch(self, client: Client, pinned: Reference) -> Json:
        try:
            return self._have(client, pinned, silent)
        except RegistryError as error:
            raise ImageUnavailable(str(error)) from error

    def _have(self, client: Client, pinned: Reference, progress: Progress) -> Json:
        """Return the pinned image of a registry, pulled if need be."""
        found = client.image(pinned.local)
        if found is not None:
            self._cache.touch([pinned.listed])
            return found
        self._cache.expect(pinned.listed)
        self._registries.pull(client, pinned, progress)
        found = client.image(pinned.local)
        if found is None:
            raise RegistryError("image_unavailable", f"the image {pinned} was removed while it was being pulled")
        self._cache.arrived(pinned.listed, found["Size"])
        return found

    def _facts(self, client: Client, found: Json) -> Image:
        config = found.get("Config") or {}
        user = config.get("User") or ""
        if users.is_named(user):
            with self._readers.of_image(client, found) as reader:
                uid, gid = user_of(client, reader, user)
        else:
            uid, gid = users.ids(user, lambda _: None)
        variables = frozenset(each.partition("=")[0] for each in config.get("Env") or ())
        labels = frozenset(config.get("Labels") or ())
        return Image(found["Id"], user, uid, gid, config.get("WorkingDir") or "", variables, labels)


def pins(image: Json) -> list[str]:
    """Return by what an image may be pinned, as the daemon lists it: by registries' digests, and by its id. Pure.

    By its id where some name of it was never in a registry, as it has no other name then.
    """
    pinned = [each.rpartition("@") for each in _pinned(image)]
    names = {tag.rpartition(":")[0] for tag in image.get("RepoTags") or ()}
    is_known = pinned and names <= {name for name, _, _ in pinned}
    return [*(digest for _, _, digest in pinned), *([] if is_known else [image["Id"]])]


def _pinned(image: Json) -> Sequence[str]:
    return image.get("RepoDigests") or ()


def _command(found: Json) -> tuple[str, ...]:
    """Return what the image runs by itself."""
    config = found.get("Config") or {}
    return (*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ()))


def _digest(found: Json, reference: Reference) -> str:
    """Return what pins an image of this host: its registry's digest, or its id where it was never in a registry."""
    if reference.digest:
        return reference.digest
    digests = [each.rpartition("@") for each in found.get("RepoDigests") or ()]
    return str(next((digest for name, _, digest in digests if name == reference.familiar), found["Id"]))
