"""How a file is saved by who downloads it."""

from urllib.parse import quote

BINARY = "application/octet-stream"


def disposition(name: str) -> str:
    """Return a Content-Disposition (RFC 6266) that saves under this name, with a plain one for old clients."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%/' else "_" for c in name)
    if plain == name:
        return f'attachment; filename="{name}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
