"""Who an image's `USER` is: numbers, or names that its own `/etc/passwd` and `/etc/group` know. Pure."""

from collections.abc import Callable

PASSWD, GROUP = "/etc/passwd", "/etc/group"
LIMIT = 1 << 20
#: The one above it means that nobody is meant (chown(2)).
_HIGHEST = 2**32 - 2

#: Returns a file of the image, None where there is none.
Read = Callable[[str], bytes | None]


def is_named(user: str) -> bool:
    """Tell whether the image's files are needed to know who that is."""
    name, _, group = user.partition(":")
    return not all(part.isdecimal() or part in {"", "root"} for part in (name, group))


def ids(user: str, read: Read) -> tuple[int, int]:
    """Return user and group id; root's where nobody knows (such a container does not start)."""
    name, _, group = user.partition(":")
    uid, gid = _number(name), 0
    if uid is None:
        uid, gid = _look_up(read(PASSWD), name, 2)
    if group:
        number = _number(group)
        (gid,) = _look_up(read(GROUP), group, 1) if number is None else (number,)
    return uid, gid


def _number(text: str) -> int | None:
    if text in {"", "root"}:
        return 0
    return int(text) if _is_id(text) else None


def _is_id(text: str) -> bool:
    return text.isdecimal() and len(text) <= len(str(_HIGHEST)) and int(text) <= _HIGHEST


def _look_up(content: bytes | None, name: str, count: int) -> tuple[int, ...]:
    """Return so many numbers of the entry: they come third and on."""
    for line in (content or b"").decode(errors="replace").splitlines():
        first, _, *fields = (*line.split(":"), "")
        numbers = fields[:count]
        if first == name and len(numbers) == count and all(map(_is_id, numbers)):
            return tuple(int(number) for number in numbers)
    return (0,) * count
