"""Reads single files out of containers that do not run. Links are followed within the container alone. All blocks."""

import base64
import io
import json
import tarfile

from gurney.runtime.docker.daemon import Client, Refused, one_line

_HEADER = "X-Docker-Container-Path-Stat"
#: Bits of Go's file modes.
_LINK, _NOT_A_FILE = 1 << 27, 0x8F280000
_LINKS = 8
_TIMEOUT_S = 60
_ABSENT, _FAULT = 404, 400


class TooLargeError(Exception):
    """The file has more bytes than were asked for."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


def read(client: Client, container: str, path: str, limit: int) -> bytes | None:
    """Return the content of a file; None where there is none."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container}/archive"
    for _ in range(_LINKS):
        answer = client.head(url, params={"path": path}, timeout=_TIMEOUT_S)
        if answer.status_code == _ABSENT:
            return None
        if answer.status_code >= _FAULT:
            raise Refused(answer.status_code, f"{path} cannot be read: {one_line(answer.reason)}")
        told = json.loads(base64.b64decode(answer.headers[_HEADER]))
        if not told["mode"] & _LINK:
            break
        path = told["linkTarget"]
    if told["mode"] & _NOT_A_FILE:
        return None
    if told["size"] > limit:
        raise TooLargeError(told["size"])
    answer = client.get(url, params={"path": path}, timeout=_TIMEOUT_S)
    answer.raise_for_status()
    return _only_file(answer.content)


def _only_file(archive: bytes) -> bytes | None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.next()
        file = tar.extractfile(member) if member is not None and member.isfile() else None
        return None if file is None else file.read()
