"""Who may ask the private listener: it has no authentication, and whoever asks it can fetch every output."""

import ipaddress

from aiohttp import hdrs, web

#: What `ipaddress` takes for private has more, such as Teredo's addresses, behind which is anybody.
NEAR = tuple(
    ipaddress.ip_network(each)
    for each in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
#: What browsers send with each request.
BROWSER = ("Origin", "Sec-Fetch-Site")


def is_near(address: str | None) -> bool:
    """Tell whether an address is of the loopback device, of a private network (RFC 1918, RFC 4193) or of a link."""
    try:
        found = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return False
    plain = getattr(found, "ipv4_mapped", None) or found
    return any(plain in network for network in NEAR)


def foreign(request: web.Request) -> str | None:
    """Say why the private listener does not answer; None where it does.

    A browser also sends what pages of other sites ask, from where somebody near looks at them; and a name that such a
    page had may lead here by now (DNS rebinding). So it is answered only where no such name was asked for.
    """
    if not is_near(request.remote):
        return "the private API answers private networks only"
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and origin.rpartition("/")[2] != request.host:
        return "the private API is not for pages of other sites"
    host = request.url.host or ""
    if any(name in request.headers for name in BROWSER) and "." in host and not is_near(host):
        return "a browser reaches the private API by its address, or as localhost"
    return None
