"""The edge's documents: tokens."""

from gurney.documents.port import Collection, Documents
from gurney.model.access import Token
from gurney.model.common import Page
from gurney.paging import newest_first

TOKENS = Collection("tokens", Token, (("created_at",),))


def secret_key(digest: str) -> str:
    """Return the unique key under which a token is found by the digest of its secret."""
    return f"secret:{digest}"


async def tokens(documents: Documents, limit: int, cursor: str | None) -> Page[Token]:
    """Return a page of all tokens, newest first."""
    return await newest_first(documents, TOKENS, [], limit, cursor)
