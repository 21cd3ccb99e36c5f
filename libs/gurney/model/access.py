"""Who asks: roles, tokens, and what a caller may see."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from gurney.model.base import Input, InputTimestamp, Message, Owned, Timestamp


class Role(StrEnum):
    CLINICIAN = "clinician"  #: runs MAPs; sees and changes what his subject made
    DEVELOPER = "developer"  #: also registers MAPs and handlers; sees his project
    ADMINISTRATOR = "administrator"  #: everything


class Caller(Message):
    """The client on whose behalf a request is made, as the edge authenticated it."""

    token: str
    subject: str
    role: Role
    project: str = "default"

    def sees(self, document: Owned) -> bool:
        """Tell whether the document exists for this caller."""
        if self.role is Role.ADMINISTRATOR:
            return True
        if document.project != self.project:
            return False
        return self.role is Role.DEVELOPER or document.created_by == self.subject

    def scope(self) -> tuple[str | None, str | None]:
        """Return (project, author) that lists are limited to; None: not limited."""
        match self.role:
            case Role.ADMINISTRATOR:
                return None, None
            case Role.DEVELOPER:
                return self.project, None
            case Role.CLINICIAN:
                return self.project, self.subject


class Token(Owned):
    """A bearer token. Only a digest of the secret is kept."""

    PRIVATE: ClassVar[frozenset[str]] = frozenset({"idempotency", "secret_sha256", "created_by", "revision"})

    subject: str
    name: str | None = None
    role: Role
    expires_at: Timestamp | None = None
    #: SHA-256 of the secret, hexadecimal.
    secret_sha256: str

    def unique_keys(self) -> tuple[str, ...]:
        return (*super().unique_keys(), f"secret:{self.secret_sha256}")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must have printable characters only")
    return text


class CreateToken(Input):
    """Body of POST /v1/tokens."""

    subject: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
    name: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)] | None = None
    role: Role
    #: Part of unique keys, so no `:`.
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = "default"
    expires_at: InputTimestamp | None = None


class IssuedToken(Token):
    """A token at its creation: the only time when its secret is told."""

    token: str
