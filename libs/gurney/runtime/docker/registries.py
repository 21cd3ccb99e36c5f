"""Registries: which image a tag stands for now, and pulls of it. All of it blocks.

Credentials are those of a Docker client configuration, read anew each time, so that a changed password needs no
restart. They are given to the daemon with the question and kept nowhere; what comes back is told without them, for a
registry, or a proxy before it, may repeat what it was asked.
"""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from docker.auth import AuthConfig, encode_header, load_config, resolve_authconfig, resolve_repository_name
from docker.errors import APIError, DockerException

from gurney.runtime.docker.daemon import Client, one_line
from gurney.runtime.docker.reference import Reference
from gurney.runtime.port import Progress

#: What registries say to those whom they do not let in, and of what they have not. Some say the former of the latter.
_DENIED = re.compile(
    r"no basic auth|unauthorized|authentication required|authorization failed|forbidden|incorrect username"
    r"|(?<!permission )denied"
)
_ABSENT = re.compile(r"not found|manifest unknown|does not exist|name unknown")

Credentials = Mapping[str, str]


class RegistryError(Exception):
    """The image cannot be had. `code`: `not_found`, `registry_denied` or `image_unavailable`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Registries:
    """All that the daemon reaches, with the credentials of this site."""

    def __init__(self, configuration: Path | None = None) -> None:
        """`configuration`: as `~/.docker/config.json`; None: that one, where there is one."""
        self._configuration = configuration

    def digest(self, client: Client, reference: Reference) -> str:
        """Return the digest of what a tag stands for now; raises `RegistryError`."""
        credentials = self._credentials(reference)
        try:
            told = client.inspect_distribution(reference.local, auth_config=credentials)  # type: ignore[no-untyped-call]
        except APIError as error:
            raise self._fault(reference, credentials, error.explanation or error) from None
        return str(told["Descriptor"]["digest"])

    def pull(self, client: Client, pinned: Reference, progress: Progress) -> None:
        """Have the daemon pull an image by its digest, which moves no tag; raises `RegistryError`."""
        credentials = self._credentials(pinned)
        layers: dict[str, tuple[int, int]] = {}
        try:
            for line in client.pull(pinned.name, pinned.digest, stream=True, decode=True, auth_config={**credentials}):
                if "error" in line:
                    raise self._fault(pinned, credentials, line["error"])
                detail = line.get("progressDetail") or {}
                if line.get("status") == "Downloading" and detail.get("total"):
                    layers[line["id"]] = (detail.get("current", 0), detail["total"])
                    done, total = (sum(each) for each in zip(*layers.values(), strict=True))
                    progress("pulling", done, total)
        except APIError as error:
            raise self._fault(pinned, credentials, error.explanation or error) from None
        except json.JSONDecodeError:
            raise self._fault(pinned, credentials, "the daemon broke off") from None

    def _credentials(self, reference: Reference) -> Credentials:
        """Return what there is for the image's registry, nothing where there is nothing."""
        try:
            registry, _ = resolve_repository_name(reference.name)
        except DockerException as error:
            raise RegistryError("image_unavailable", f"the image {reference} cannot be pulled: {error}") from error
        try:
            found = resolve_authconfig(self._configured(), registry)
        # Not what it says, nor what it comes of: that may be what the file has.
        except (DockerException, ValueError, LookupError, TypeError, AttributeError, OSError, Warning) as error:
            where = "the file that GURNEY_REGISTRY_CONFIG names" if self._configuration else "~/.docker/config.json"
            text = f"{where}, or a credential helper that it names, cannot be used: {type(error).__name__}"
            raise RegistryError("image_unavailable", f"the image {reference} cannot be pulled: {text}") from None
        return dict(found or {})

    def _configured(self) -> AuthConfig:
        if self._configuration is None:
            return load_config()
        try:
            content = json.loads(self._configuration.read_bytes())
        except FileNotFoundError:
            content = {}
        return load_config(config_dict=content) if content else AuthConfig({})

    def _fault(self, reference: Reference, credentials: Credentials, answer: object) -> RegistryError:
        """Return the error for an answer of the daemon's."""
        text = one_line(without(credentials, str(answer)))
        host = reference.name.partition("/")[0] if reference.names_registry else "docker.io"
        if _DENIED.search(text.lower()):
            known = "has credentials that it does not accept" if credentials else "has no credentials for it"
            remedy = f"the file named by GURNEY_REGISTRY_CONFIG {known}"
            return RegistryError("registry_denied", f"the registry {host} refuses {reference}: {text} ({remedy})")
        if _ABSENT.search(text.lower()):
            return RegistryError("not_found", f"there is no image {reference}: {text}")
        return RegistryError("image_unavailable", f"the image {reference} cannot be pulled: {text}")


def without(credentials: Credentials, text: str) -> str:
    """Return the text without the secrets of the credentials, in whichever form they go over the wire."""
    given: dict[str, Any] = {name.lower(): str(value) for name, value in credentials.items() if value}
    password = given.get("password", "")
    pair = f"{given.get('username', '')}:{password}".encode()
    forms = [given.get("identitytoken", ""), password, quote(password, safe="")]
    forms += [base64.b64encode(each).decode() for each in (pair, password.encode()) if password]
    if credentials:
        forms.append(encode_header(dict(credentials)).decode())
    for form in sorted({each for each in forms if each}, key=len, reverse=True):
        text = text.replace(form, "***")
    return text
