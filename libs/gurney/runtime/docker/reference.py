"""Image references: `[host[:port]/]path[:tag][@digest]`. Pure."""

import re
from dataclasses import dataclass

URN_PREFIX = "urn:oci:"

_DOCKER = frozenset({"docker.io", "index.docker.io"})
_REFERENCE = re.compile(
    r"(?P<name>[^@]+?)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is to be had, and which of them."""

    #: Host and path, without tag and digest.
    name: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}@{self.digest}" if self.digest else f"{self.name}{tag}"

    @property
    def names_registry(self) -> bool:
        """Whether the first part is a host: what else has no host may as well have been built here."""
        first, slash, _ = self.name.partition("/")
        return bool(slash) and (first == "localhost" or "." in first or ":" in first)

    @property
    def local(self) -> str:
        """How the daemon is asked for what it has."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag or 'latest'}"

    @property
    def listed(self) -> str:
        """How the daemon lists what is pinned."""
        return f"{self.familiar}@{self.digest}"

    @property
    def familiar(self) -> str:
        """The name by which the daemon lists images: Docker's own registry is left out."""
        host, _, path = self.name.partition("/")
        name = path if host in _DOCKER else self.name
        return name.removeprefix("library/") if name.count("/") == 1 else name

    def at(self, digest: str) -> "Reference":
        """Return the reference that pins this digest."""
        return Reference(self.name, None, digest)


def parse(urn: str) -> Reference:
    """Return what the URN refers to; ValueError for what is no reference."""
    text = urn.removeprefix(URN_PREFIX)
    match = _REFERENCE.fullmatch(text)
    if not urn.startswith(URN_PREFIX) or match is None:
        raise ValueError(f"{urn!r} does not name an image")
    return Reference(match["name"], match["tag"], match["digest"])
