"""URNs of MAPs (RFC 8141): `urn:oci:<image reference>` and `urn:gurney:dir:<name>`. Pure."""

import re

from gurney.errors import Invalid

OCI = "urn:oci:"
FOLDER = "urn:gurney:dir:"

MAX_LENGTH = 1024
#: distribution/reference, without the port's range: domain[:port]/path[:tag][@digest].
_REFERENCE = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
#: A host to some daemons, and a folder of Docker's own registry to others and to those who look for its credentials.
_AMBIGUOUS = re.compile(r"(?![a-z0-9-]*/)[a-zA-Z0-9-]+/")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def normalise(text: str) -> str:
    """Return the URN in its one form; a bare image reference becomes `urn:oci:`. Raises `Invalid` (`urn`)."""
    urn = text.strip()
    if not urn or len(urn) > MAX_LENGTH:
        raise Invalid.field("urn", f"must have 1 to {MAX_LENGTH} characters")
    if not urn.lower().startswith("urn:"):
        return _oci(urn)
    scheme, namespace, *_ = (*urn.split(":", 2), "")
    prefix = f"{scheme}:{namespace}:".lower()
    if prefix == OCI:
        return _oci(urn[len(OCI) :])
    if urn.lower().startswith(FOLDER):
        return _folder(urn[len(FOLDER) :])
    raise Invalid.field("urn", "must be urn:oci:<image reference>, urn:gurney:dir:<name> or an image reference")


def _oci(reference: str) -> str:
    if not _REFERENCE.fullmatch(reference) or _AMBIGUOUS.match(reference):
        raise Invalid.field("urn", f"{reference!r} is not an image reference")
    return OCI + reference


def _folder(name: str) -> str:
    if not _FOLDER_NAME.fullmatch(name):
        raise Invalid.field("urn", f"{name!r} is not a folder name: letters, digits, '.', '_' and '-', at most 128")
    return FOLDER + name
