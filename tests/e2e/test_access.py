"""Who may what: tokens, roles and projects."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.conftest import ClientOf


async def test_tokens(admin: Api, project: str) -> None:
    """A token is told once, listed without its secret, says who holds it, and lets nobody in once it is deleted."""
    asked = {"subject": "Dr. Grün", "role": "developer", "project": project, "name": "reading room"}
    made = (await admin.post("/v1/tokens", asked)).must(201).json
    async with Api(admin.url, made["token"]) as holder:
        who = (await holder.get("/v1/whoami")).must(200).json
        assert (who["id"], who["subject"], who["role"], who["project"]) == (
            made["id"],
            "Dr. Grün",
            "developer",
            project,
        )
        listed = {each["id"]: each for each in await admin.all("/v1/tokens?limit=3")}
        assert listed[made["id"]]["name"] == "reading room"
        assert made["token"] not in str(listed)
        (await admin.delete(f"/v1/tokens/{made['id']}")).must(204)
        (await holder.get("/v1/whoami", case="deleted token")).must(401)
        (await admin.delete(f"/v1/tokens/{made['id']}", case="deleted")).must(404)


async def test_expiry(admin: Api, project: str) -> None:
    """A token works until it expires, and one that would be expired at once is refused."""
    asked = {"subject": "guest", "role": "clinician", "project": project}
    soon = (datetime.now(UTC) + timedelta(seconds=0.7)).isoformat()
    token = (await admin.post("/v1/tokens", asked | {"expires_at": soon})).must(201).json["token"]
    async with Api(admin.url, token) as guest:
        (await guest.get("/v1/whoami")).must(200)
        async with asyncio.timeout(10):
            while (await guest.get("/v1/whoami", case="expired token")).status != 401:
                await asyncio.sleep(0.05)
    answer = (await admin.post("/v1/tokens", asked | {"expires_at": "2020-01-01T00:00:00Z"})).must(422)
    assert answer.fields == {"expires_at"}


@pytest.mark.req("MAS-04")
async def test_clinician(api: Api, client_of: ClientOf) -> None:
    """A clinician runs MAPs and sees what his subject made; another's things are not there for him."""
    made = await work.register(api, "shell", name="shell")
    mine, theirs = await client_of("clinician", "mine"), await client_of("clinician", "theirs")
    assert [each["id"] for each in await mine.all("/v1/maps")] == [made["id"]]
    job = await work.ended(mine, (await work.submit(mine, "shell", {"run.sh": "true"}))["id"])
    assert (job["state"], job["created_by"]) == ("succeeded", "mine")
    for part in ("", "/logs", "/results", "/story", "/events"):
        (await theirs.get(f"/v1/jobs/{job['id']}{part}", case="another's")).must(404)
    (await theirs.delete(f"/v1/jobs/{job['id']}", case="another's")).must(404)
    for part in ("", "/files", "/files/run.sh", "/archive"):
        (await theirs.get(f"/v1/payloads/{job['payload']}{part}", case="another's")).must(404)
    asked = {"map": "shell", "payload": job["payload"]}
    (await theirs.post("/v1/jobs", asked, case="another's payload")).must(404)
    assert await theirs.all("/v1/jobs") == []
    assert [each["id"] for each in await api.all("/v1/jobs")] == [job["id"]]
    (await mine.post("/v1/maps", {"urn": "urn:gurney:dir:noop"}, case="clinician")).must(403, "forbidden")


async def test_another_project(api: Api, client_of: ClientOf) -> None:
    """A developer of another project finds nothing of this one, by no method."""
    other = await client_of("developer", "other", project="far-away")
    job = await work.shell(api, "true")
    handler = (await api.post("/v1/handlers", {"url": "http://127.0.0.1:9/"})).must(201).json
    for path in (f"/v1/jobs/{job['id']}", f"/v1/payloads/{job['payload']}", f"/v1/handlers/{handler['id']}"):
        (await other.get(path, case="another project")).must(404)
        (await other.delete(path, case="another project")).must(404)
        (await api.get(path)).must(200)
    assert handler["id"] not in {each["id"] for each in await other.all("/v1/handlers")}


@pytest.mark.embedded
async def test_administrator(api: Api, admin: Api, server: EmbeddedProcess) -> None:
    """The administrator's token lies in a file that only its owner can read, and sees all projects."""
    assert (server.data / "token").stat().st_mode & 0o777 == 0o600
    made = await work.payload(api)
    (await admin.get(f"/v1/payloads/{made}")).must(200)
    assert (await admin.get("/v1/whoami")).json["role"] == "administrator"


@pytest.mark.embedded
async def test_secrets_are_not_kept(admin: Api, server: EmbeddedProcess, project: str) -> None:
    """No secret of a token lies in the data folder but the administrator's own."""
    asked = {"subject": "x", "role": "clinician", "project": project}
    token = (await admin.post("/v1/tokens", asked)).must(201).json["token"].encode()
    files = [server.data / "documents.sqlite", server.data / "documents.sqlite-wal", server.log]
    assert not [file for file in files if file.exists() and token in file.read_bytes()]
