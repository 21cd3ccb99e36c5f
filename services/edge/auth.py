"""Who asks: bearer tokens, looked up by the digest of their secret and remembered for a few seconds."""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from gurney import clock, ids
from gurney.documents.port import Documents, Write
from gurney.errors import Forbidden, KeyTaken, Unauthorized
from gurney.model.access import Caller, Role, Token
from services.edge.repository import TOKENS, secret_key

#: How long another edge's deletion may go unnoticed, where its notice is lost.
CACHE_S = 5.0
CACHED = 4096

BEARER = "bearer "
#: Subject of the first administrator.
ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    expires_at: datetime | None
    until: float


class Authenticator:
    """Tells callers by their tokens."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._forgotten = 0

    async def caller(self, authorization: str | None) -> Caller:
        """Return who sent this header; raises `Unauthorized`."""
        if authorization is None or authorization[: len(BEARER)].lower() != BEARER:
            raise Unauthorized("a bearer token is needed: Authorization: Bearer <token>")
        digest = ids.digest_of(authorization[len(BEARER) :].strip())
        known = self._known.get(digest)
        if known is None or known.until < clock.monotonic():
            known = await self._look_up(digest)
        if known is None or (known.expires_at and known.expires_at <= clock.now()):
            raise Unauthorized("the token is not known or has expired")
        return known.caller

    async def _look_up(self, digest: str) -> _Known | None:
        before = self._forgotten
        token = await self._documents.by_key(TOKENS, secret_key(digest))
        if token is None:
            self._known.pop(digest, None)
            return None
        known = _Known(caller_of(token), token.expires_at, clock.monotonic() + CACHE_S)
        if before == self._forgotten:  # else this one may have been deleted while it was read
            self._known[digest] = known
            self._known.move_to_end(digest)
            if len(self._known) > CACHED:
                self._known.popitem(last=False)
        return known

    def forget(self, token: Token) -> None:
        """Let a deletion take effect at once."""
        self._forgotten += 1
        self._known.pop(token.secret_sha256, None)

    def forget_all(self) -> None:
        """Look every token up again: another edge has deleted one."""
        self._forgotten += 1
        self._known.clear()


def caller_of(token: Token) -> Caller:
    return Caller(token=token.id, subject=token.subject, role=token.role, project=token.project)


def allow(caller: Caller, roles: frozenset[Role]) -> None:
    """Raise `Forbidden` unless the caller's role is one of these."""
    if caller.role not in roles:
        needed = " or ".join(role for role in Role if role in roles)
        raise Forbidden(f"this needs the role {needed}, the token has the role {caller.role}")


def new_token(secret: str, subject: str, role: Role, *, created_by: str, project: str = "default") -> Token:
    """Return a token that never expires."""
    return Token(
        id=ids.new_id("tok"),
        project=project,
        created_by=created_by,
        created_at=clock.now(),
        subject=subject,
        role=role,
        secret_sha256=ids.digest_of(secret),
    )


async def ensure_token(documents: Documents, secret: str, subject: str, role: Role) -> None:
    """Make this secret a token, where it is none yet."""
    await documents.open([TOKENS])
    token = new_token(secret, subject, role, created_by=ADMIN)
    (fault,) = await documents.cas([Write(TOKENS, token.id, 0, token)])
    if fault is not None and not isinstance(fault, KeyTaken):
        raise fault
