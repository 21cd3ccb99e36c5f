"""Which addresses job handlers may have: the guard against using the server to reach what only it can reach.

Names are checked again at each connection, by the resolver that aiohttp uses, so a name that changes its address
later gains nothing.
"""

import ipaddress
from typing import Literal
from urllib.parse import urlsplit

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from gurney.errors import Invalid

Policy = Literal["none", "loopback", "all"]


def allowed(address: str, policy: Policy) -> bool:
    """Tell whether a handler may be at this IP address."""
    if policy == "all":
        return True
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return policy == "loopback"
    return ip.is_global and not ip.is_multicast


def check_url(url: str, policy: Policy) -> str:
    """Return a handler's URL; raises `Invalid` for the field `url`."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise Invalid.field("url", f"is not a URL: {error}") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise Invalid.field("url", "must be http:// or https:// with a host")
    if parts.username or parts.password:
        raise Invalid.field("url", "must not carry credentials")
    if is_address(host) and not allowed(host, policy):
        raise Invalid.field("url", f"{host} is an address that this server does not send to (webhook_private)")
    return url


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class GuardedResolver(AbstractResolver):
    """Resolves names to allowed addresses only."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._resolver = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)  # type: ignore[arg-type]  # family is an int here, too
        kept = [each for each in found if allowed(each["host"], self._policy)]
        if not kept:
            raise OSError(f"{host} has no address that this server sends to")
        return kept

    async def close(self) -> None:
        await self._resolver.close()
