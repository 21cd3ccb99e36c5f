"""Bad fields: each is refused with 422 that names it and leaves nothing behind."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e import work
from tests.e2e.api import Api

LONG = "x" * 2000

#: (path, body, field)
BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/maps", {"urn": "urn:nonsense:x"}, "urn"),
    ("/v1/maps", {"urn": ""}, "urn"),
    ("/v1/maps", {"urn": "urn:oci:"}, "urn"),
    ("/v1/maps", {"urn": "urn:oci:name/UPPER"}, "urn"),
    ("/v1/maps", {"urn": "urn:gurney:dir:../etc"}, "urn"),
    ("/v1/maps", {"urn": "urn:gurney:dir:a/b"}, "urn"),
    ("/v1/maps", {"urn": "urn:gurney:dir:a\0"}, "urn"),
    ("/v1/maps", {"urn": LONG}, "urn"),
    ("/v1/maps", {"urn": 7}, "urn"),
    ("/v1/maps", {}, "urn"),
    ("/v1/maps", {"urn": "urn:gurney:dir:noop", "name": "a/b"}, "name"),
    ("/v1/maps", {"urn": "urn:gurney:dir:noop", "name": "map_x"}, "name"),
    ("/v1/maps", {"urn": "urn:gurney:dir:noop", "name": ""}, "name"),
    ("/v1/maps", {"urn": "urn:gurney:dir:noop", "labels": {"a=b": "c"}}, "labels"),
    ("/v1/payloads", {"name": "x" * 129}, "name"),
    ("/v1/payloads", {"name": "a\nb"}, "name"),
    ("/v1/payloads", {"labels": {str(n): "x" for n in range(65)}}, "labels"),
    ("/v1/payloads", {"keep": "perhaps"}, "keep"),
    ("/v1/payloads", {"keep": "yes"}, "keep"),
    ("/v1/jobs", {"map": "m"}, "payload"),
    ("/v1/jobs", {"map": "m", "payload": "p", "priority": "urgent"}, "priority"),
    ("/v1/jobs", {"map": "m", "payload": "p", "timeout_s": -1}, "timeout_s"),
    ("/v1/jobs", {"map": "m", "payload": "p", "retries": 11}, "retries"),
    ("/v1/jobs", {"map": "m", "payload": "p", "retries": "1"}, "retries"),
    ("/v1/jobs", {"map": "m", "payload": "p", "admission": "perhaps"}, "admission"),
    ("/v1/jobs", {"map": "m", "payload": "p", "resources": {"cores": 1}}, "resources.cores"),
    ("/v1/jobs", {"map": "m", "payload": "p", "resources": {"cpu": -1}}, "resources.cpu"),
    ("/v1/handlers", {"url": "ftp://127.0.0.1/"}, "url"),
    ("/v1/handlers", {"url": "no url"}, "url"),
    ("/v1/handlers", {"url": "http://127.0.0.1:9/", "events": ["job.dreamed"]}, "events"),
    ("/v1/handlers", {"url": "http://192.168.0.1/"}, "url"),
]

QUERIES = [
    ("/v1/maps", "limit=0", "limit"),
    ("/v1/maps", "limit=1001", "limit"),
    ("/v1/maps", "state=sleeping", "state"),
    ("/v1/maps", "cursor=nonsense", "cursor"),
    ("/v1/maps", "label=nonsense", "label"),
    ("/v1/payloads", "cursor=nonsense", "cursor"),
    ("/v1/payloads", "created_after=yesterday", "created_after"),
    ("/v1/payloads", "created_before=2026-01-31", "created_before"),
    ("/v1/payloads", "name=a&name=b", "name"),
    ("/v1/jobs", "state=dreaming", "state"),
    ("/v1/jobs", "cursor=nonsense", "cursor"),
    ("/v1/jobs", "completed_after=1", "completed_after"),
    ("/v1/jobs", "completed_before=2026-02-30T00:00:00Z", "completed_before"),
    ("/v1/handlers", "cursor=nonsense", "cursor"),
    ("/v1/nodes", "cursor=%FF", "cursor"),
    ("/v1/events", "types=nonsense", "types"),
    ("/v1/tokens", "cursor=nonsense", "cursor"),
]

PATHS = [
    ("%2Fetc/passwd", "absolute"),
    ("a/%2E%2E/b", "parent"),
    ("..", "parent alone"),
    ("%2E", "here"),
    ("", "empty"),
    ("a%2F%2Fb", "empty part"),
    ("a%00b", "NUL"),
    ("a%0Ab", "line break"),
    ("x/" * 512 + "y", "over 1,024 bytes"),
    ("x" * 256, "part over 255 bytes"),
    ("%FF%FE", "not UTF-8"),
]


@pytest.mark.parametrize(("path", "body", "field"), BODIES, ids=lambda value: str(value)[:60])
async def test_bodies(api: Api, path: str, body: dict[str, Any], field: str) -> None:
    """A field of a body that does not fit is named, and nothing is made."""
    answer = (await api.post(path, body, case=f"bad {field}")).must(422)
    assert any(named == field or named.startswith(f"{field}.") for named in answer.fields), answer.json
    assert await api.all(path) == []


@pytest.mark.parametrize(("path", "query", "field"), QUERIES)
async def test_queries(admin: Api, path: str, query: str, field: str) -> None:
    """A filter, a time or a cursor that does not fit is named."""
    answer = (await admin.get(f"{path}?{query}", case=f"bad {field}")).must(422)
    assert field in answer.fields, answer.json


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
@pytest.mark.parametrize(("path", "case"), PATHS, ids=[case for _, case in PATHS])
async def test_paths(api: Api, method: str, path: str, case: str) -> None:
    """A path that no payload can hold is refused by every method, and no file is made."""
    made = await work.payload(api)
    body = b"x" if method == "PUT" else b""
    head = f"{method} /v1/payloads/{made}/files/{path} HTTP/1.1\nContent-Length: {len(body)}\nConnection: close"
    answer = (await api.raw(head, body, case=f"path: {case}")).must(422)
    assert answer.fields == {"path"}
    assert (await api.get(f"/v1/payloads/{made}")).json["files"] == 0


async def test_paths_of_results(api: Api) -> None:
    """A path that results cannot have is refused in the same way."""
    job = await work.shell(api, "true")
    head = f"GET /v1/jobs/{job['id']}/results/a/../b HTTP/1.1\nConnection: close"
    assert (await api.raw(head, case="path: parent")).must(422).fields == {"path"}


@pytest.mark.parametrize(("header", "value"), [("Prefer", "wait=soon"), ("Prefer", "wait=-1")])
async def test_headers(api: Api, header: str, value: str) -> None:
    """A header that does not fit is named."""
    job = await work.shell(api, "true")
    answer = (await api.get(f"/v1/jobs/{job['id']}", headers={header: value}, case=f"bad {header}")).must(422)
    assert answer.fields == {header}


async def test_idempotency_key(api: Api) -> None:
    """An idempotency key of too many characters is named."""
    headers = {"Idempotency-Key": "x" * 256}
    assert (await api.post("/v1/payloads", {}, headers=headers)).must(422).fields == {"Idempotency-Key"}


async def test_names_of_things(api: Api) -> None:
    """Names with a slash, of no printable characters, or in the form of ids are refused when something is renamed."""
    made = await work.payload(api)
    for name in ("a/b", "\t", "", "x" * 129, "pay_1", "."):
        assert (await api.put(f"/v1/payloads/{made}/name", {"name": name})).must(422).fields == {"name"}
    (await api.get(f"/v1/payloads/{quote('a/b', safe='')}")).must(404)


async def test_file_beside_folder(api: Api) -> None:
    """No path may be a file and a folder at once."""
    made = await work.payload(api, {"a": b"file"})
    answer = (await api.put(f"/v1/payloads/{made}/files/a/b", b"below")).must(422)
    assert answer.fields == {"path"}
