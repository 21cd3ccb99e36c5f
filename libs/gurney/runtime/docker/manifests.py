"""Reads manifests out of a container, wherever it has them. All of it blocks."""

from collections.abc import Iterable

from gurney.errors import MapUnreadable
from gurney.runtime.docker import files
from gurney.runtime.docker.daemon import Client

#: Where images have their manifests, by generation, the newer one first.
FOLDERS = ("/etc/holoscan", "/etc/monai")
#: Together, in bytes.
LIMIT = 128 * 1024
_APP, _PKG = "app.json", "pkg.json"


def read(client: Client, container: str, folders: Iterable[str] = FOLDERS) -> dict[str, bytes]:
    """Return path -> content of the first folder that has an app.json; nothing where none has.

    Raises `MapUnreadable` for manifests that are too large.
    """
    for folder in folders:
        left = LIMIT
        manifests: dict[str, bytes] = {}
        for path in (f"{folder}/{_APP}", f"{folder}/{_PKG}"):
            try:
                content = files.read(client, container, path, left)
            except files.TooLargeError as error:
                text = f"The manifests have {LIMIT - left + error.size} bytes, {LIMIT} are allowed"
                raise MapUnreadable("manifest_too_large", text) from error
            if content is not None:
                manifests[path] = content
                left -= len(content)
        if f"{folder}/{_APP}" in manifests:
            return manifests
    return {}
