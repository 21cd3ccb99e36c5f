"""MAPs: registration, what is read of them, names, lists, the end."""

import asyncio
import json

import pytest

from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.conftest import ClientOf


@pytest.mark.req("MAS-15")
async def test_registration(api: Api) -> None:
    """An id comes at once, the MAP is `registering` then `ready`, and shows its manifests and what they say."""
    made = (await api.post("/v1/maps", {"urn": "urn:gurney:dir:shell", "labels": {"organ": "liver"}})).must(202)
    assert made.json["state"] == "registering"
    assert made.headers["Location"] == f"/v1/maps/{made.json['id']}"
    ready = await work.settled(api, made.json["id"])
    assert (ready["state"], ready["reason"]) == ("ready", None)
    assert {manifest["path"] for manifest in ready["manifests"]} == {"app.json", "pkg.json"}
    (pkg,) = [manifest["content"] for manifest in ready["manifests"] if manifest["path"] == "pkg.json"]
    assert pkg["resources"] == {"cpu": 0.01, "memory": "16Mi"}
    described = ready["description"]
    assert (described["generation"], described["resources"]["memory"]) == ("holoscan", 16 * 1024**2)
    assert described["command"][0] == "/bin/sh"
    assert ready["digest"].startswith("sha256:")
    assert ready["labels"] == {"organ": "liver"}


@pytest.mark.parametrize(
    ("urn", "reason"),
    [
        ("urn:gurney:dir:no-manifest", "manifest_missing"),
        ("urn:gurney:dir:broken-manifest", "manifest_broken"),
        ("urn:gurney:dir:no-command", "no_command"),
        ("urn:gurney:dir:not-there", "not_found"),
        ("urn:oci:registry.example/some/map:1.0", "no_runtime"),
        ("registry.example/some/map:1.0", "no_runtime"),
    ],
)
async def test_invalid(api: Api, urn: str, reason: str) -> None:
    """A MAP that cannot be used becomes `invalid` with a reason that says which, and no job of it is accepted."""
    made = (await api.post("/v1/maps", {"urn": urn})).must(202).json
    found = await work.settled(api, made["id"])
    assert (found["state"], found["reason"]["code"]) == ("invalid", reason)
    assert found["reason"]["message"]
    asked = {"map": made["id"], "payload": await work.payload(api)}
    (await api.post("/v1/jobs", asked, case="MAP is invalid")).must(409, "map_not_ready")
    assert (await api.get(f"/v1/payloads/{asked['payload']}")).json["held_by"] == []


@pytest.mark.req("MAS-13")
async def test_list(api: Api) -> None:
    """MAPs are listed newest first, page by page; name, state, URN and labels filter, all at once if need be."""
    first = await work.register(api, "shell", name="one", labels={"organ": "liver", "phase": "2"})
    second = await work.register(api, "noop", name="two", labels={"organ": "liver"})
    third = await work.register(api, "no-manifest")
    assert [each["id"] for each in await api.all("/v1/maps?limit=1")] == [third["id"], second["id"], first["id"]]
    assert [each["id"] for each in await api.all("/v1/maps?state=invalid")] == [third["id"]]
    assert [each["id"] for each in await api.all("/v1/maps?name=two")] == [second["id"]]
    assert [each["id"] for each in await api.all("/v1/maps?urn=urn:gurney:dir:shell")] == [first["id"]]
    assert len(await api.all("/v1/maps?label=organ%3Dliver&state=ready")) == 2
    assert [each["id"] for each in await api.all("/v1/maps?label=organ%3Dliver&label=phase%3D2")] == [first["id"]]
    assert await api.all("/v1/maps?label=phase%3D2&name=two") == []
    between = f"created_after={first['created_at']}&created_before={third['created_at']}"
    assert second["id"] in {each["id"] for each in await api.all(f"/v1/maps?{between}")}
    assert all("manifests" not in each for each in await api.all("/v1/maps"))


@pytest.mark.req("MAS-14")
async def test_names(api: Api) -> None:
    """A MAP is named, found and run by its name, renamed and unnamed; a name is held by one at a time."""
    first = await work.register(api, "shell", name="lungs")
    second = await work.register(api, "noop")
    (await api.post("/v1/maps", {"urn": "urn:gurney:dir:noop", "name": "lungs"}, case="name taken")).must(
        409, "name_taken"
    )
    (await api.put(f"/v1/maps/{second['id']}/name", {"name": "lungs"}, case="name taken")).must(409, "name_taken")
    assert (await api.put("/v1/maps/lungs/name", {"name": "lobes"})).must(200).json["id"] == first["id"]
    (await api.get("/v1/maps/lungs")).must(404)
    job = await work.submit(api, "lobes", {"run.sh": "true"})
    assert job["map"]["id"] == first["id"]
    assert job["map"]["name"] == "lobes"
    (await api.delete("/v1/maps/lobes/name")).must(204)
    (await api.get("/v1/maps/lobes")).must(404)
    assert (await api.get(f"/v1/maps/{first['id']}")).must(200).json["name"] is None


@pytest.mark.req("MAS-12")
async def test_unregister(api: Api) -> None:
    """A MAP with a live job stays (409); without one it goes: still readable, listed only by state; records stay."""
    made = await work.register(api, "shell", name="spleen")
    job = await work.submit(api, made["id"], {"run.sh": "sleep 30"})
    (await api.delete("/v1/maps/spleen", case="live job")).must(409, "map_in_use")
    (await api.post(f"/v1/jobs/{job['id']}/cancel")).must(202)
    await work.ended(api, job["id"])
    (await api.delete("/v1/maps/spleen")).must(204)
    assert (await api.get(f"/v1/maps/{made['id']}")).must(200).json["state"] == "unregistered"
    assert await api.all("/v1/maps") == []
    assert [each["id"] for each in await api.all("/v1/maps?state=unregistered")] == [made["id"]]
    assert (await api.get(f"/v1/jobs/{job['id']}")).must(200).json["map"]["id"] == made["id"]
    asked = {"map": made["id"], "payload": job["payload"]}
    (await api.post("/v1/jobs", asked, case="MAP is unregistered")).must(409, "map_not_ready")
    (await api.post("/v1/maps", {"urn": "urn:gurney:dir:noop", "name": "spleen"})).must(202)


async def test_dry_run(api: Api) -> None:
    """A dry run reads the MAP and answers with what a registration would come to; nothing is made."""
    tried = (await api.post("/v1/maps?dry_run=true", {"urn": "urn:gurney:dir:noop", "name": "x"})).must(200).json
    assert (tried["id"], tried["name"], tried["state"]) == (None, "x", "ready")
    assert tried["description"]["command"] == ["true"]
    refused = (await api.post("/v1/maps?dry_run=true", {"urn": "registry.example/map"})).must(200).json
    assert (refused["state"], refused["reason"]["code"]) == ("invalid", "no_runtime")
    assert await api.all("/v1/maps") == []
    assert await api.all("/v1/maps?state=invalid") == []
    await work.register(api, "noop", name="x")
    taken = await api.post("/v1/maps?dry_run=true", {"urn": "urn:gurney:dir:noop", "name": "x"}, case="name taken")
    taken.must(409, "name_taken")


async def test_approval(api: Api, client_of: ClientOf) -> None:
    """An administrator approves a MAP that is ready, once; who did and when is kept."""
    head = await client_of("administrator", "head")
    made = await work.register(api, "noop")
    assert (made["approved"], made["approved_by"], made["approved_at"]) == (False, None, None)
    approved = (await head.post(f"/v1/maps/{made['id']}/approve")).must(200).json
    assert (approved["approved"], approved["approved_by"]) == (True, "head")
    assert approved["approved_at"] > made["ready_at"]
    assert (await head.post(f"/v1/maps/{made['id']}/approve")).must(200).json == approved
    broken = await work.register(api, "no-manifest")
    refused = await head.post(f"/v1/maps/{broken['id']}/approve", case="MAP is invalid")
    refused.must(409, "map_not_ready")


async def test_supplied_description(api: Api) -> None:
    """What a registrant says of a MAP without manifests is what runs."""
    description = {"command": ["/bin/sh", "-c", "echo $ORGAN"], "environment": {"ORGAN": "liver"}}
    asked = {"urn": "urn:gurney:dir:no-manifest", "description": description}
    made = (await api.post("/v1/maps", asked)).must(202).json
    ready = await work.settled(api, made["id"])
    assert (ready["state"], ready["manifests"], ready["description"]["generation"]) == ("ready", [], "supplied")
    job = await work.ended(api, (await work.submit(api, made["id"], {"a": "1"}))["id"])
    assert job["state"] == "succeeded", job
    assert (await api.get(f"/v1/jobs/{job['id']}/logs")).must(200).body == b"liver\n"


async def test_static_content(api: Api) -> None:
    """A payload that a MAP brings along is there for every run of it, and stays as it is until the MAP is no more."""
    models = await work.payload(api, {"net/weights": b"w" * 1000, "labels": "liver"}, name="models")
    description = {
        "command": ["/bin/sh", "-c", 'cd "$GURNEY_CONTENT_PATH"; cat labels; wc -c < net/weights'],
        "content": {"payload": "models", "path": "/opt/models"},
    }
    asked = {"urn": "urn:gurney:dir:no-manifest", "description": description}
    tried = (await api.post("/v1/maps?dry_run=true", asked)).must(200).json
    (await api.put(f"/v1/payloads/{models}/files/more", b"1")).must(201)  # a dry run holds nothing
    (await api.delete(f"/v1/payloads/{models}/files/more")).must(204)
    made = await work.settled(api, (await api.post("/v1/maps", asked)).must(202).json["id"])
    assert made["state"] == "ready", made
    assert made["description"]["content"] == tried["description"]["content"]
    assert (made["description"]["content"]["payload"], made["description"]["content"]["path"]) == (
        models,
        "/opt/models",
    )
    for _ in range(2):
        job = await work.ended(api, (await work.submit(api, made["id"], {"in": b"123"}))["id"])
        assert job["state"] == "succeeded", job
        assert await work.log(api, job) == "liver1000\n"
        assert job["usage"]["bytes_in"] == 3

    held = (await api.put(f"/v1/payloads/{models}/files/labels", b"spleen", case="held by a MAP")).must(409)
    assert made["id"] in held.json["detail"]
    (await api.delete(f"/v1/payloads/{models}", case="held by a MAP")).must(409, "payload_in_use")
    assert (await api.get(f"/v1/payloads/{models}")).json["held_by"] == [made["id"]]
    (await api.delete(f"/v1/maps/{made['id']}")).must(204)
    (await api.put(f"/v1/payloads/{models}/files/labels", b"spleen")).must(200)
    (await api.delete(f"/v1/payloads/{models}")).must(204)


async def test_content_that_cannot_be_held(api: Api) -> None:
    """A payload that is not there, or has no files, is refused, and so is a name taken: then nothing is held."""
    empty, models = await work.payload(api), await work.payload(api, {"a": "1"})
    await work.register(api, "noop", name="spleen")
    for payload, status, name in (("pay_none", 404, "a"), (empty, 422, "b"), (models, 409, "spleen")):
        content = {"content": {"payload": payload, "path": "/opt/models"}}
        asked = {"urn": "urn:gurney:dir:noop", "name": name, "description": content}
        (await api.post("/v1/maps", asked, case=f"content, {status}")).must(status)
    for payload in (empty, models):
        (await api.delete(f"/v1/payloads/{payload}")).must(204)


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("description.content.path", {"description": {"content": {"payload": "p", "path": "models"}}}),
        (
            "description.content.path",
            {"description": {"content": {"payload": "p", "path": "/var/holoscan/input/models"}}},
        ),
        ("description.input_path", {"description": {"input_path": "input"}}),
        ("description.output_path", {"description": {"output_path": "/"}}),
        ("description.output_path", {"description": {"input_path": "/data", "output_path": "/data/out"}}),
        ("description.working_directory", {"description": {"working_directory": "work"}}),
        ("description.environment", {"description": {"environment": {"A=B": "1"}}}),
        ("hardening.reason", {"hardening": {"mode": "compatible"}}),
    ],
)
async def test_bad_description(api: Api, field: str, asked: dict[str, object]) -> None:
    """What cannot be laid out in a container is refused when it is said, field by field."""
    refused = await api.post("/v1/maps", {"urn": "urn:gurney:dir:noop", **asked}, case=f"bad {field}")
    assert field in {each["field"] for each in refused.must(422).json["errors"]}


async def test_repeated_registration(api: Api) -> None:
    """The same Idempotency-Key registers one MAP; another body under it is refused."""
    key = {"Idempotency-Key": "once"}
    asked = {"urn": "urn:gurney:dir:noop"}
    answers = await asyncio.gather(*(api.post("/v1/maps", asked, headers=key) for _ in range(4)))
    assert len({answer.must(202).json["id"] for answer in answers}) == 1
    assert len(await api.all("/v1/maps")) == 1
    (await api.post("/v1/maps", asked | {"name": "x"}, headers=key)).must(422, "idempotency_key_reused")


async def test_pinned_content(api: Api) -> None:
    """Two registrations of one folder have one digest; the manifests that are shown are those of the folder."""
    first, second = await work.register(api, "noop"), await work.register(api, "noop")
    assert first["digest"] == second["digest"]
    assert json.loads(first["manifests"][0]["content"]["command"]) == ["true"]


async def test_projects_are_apart(api: Api, client_of: ClientOf) -> None:
    """What another project has cannot be seen, named or run."""
    made = await work.register(api, "noop", name="mine")
    other = await client_of("developer", "other", project="elsewhere")
    for ref in (made["id"], "mine"):
        (await other.get(f"/v1/maps/{ref}", case="another project")).must(404)
        (await other.delete(f"/v1/maps/{ref}", case="another project")).must(404)
        asked = {"map": ref, "payload": await work.payload(other)}
        (await other.post("/v1/jobs", asked, case="another project")).must(404)
    assert made["id"] not in {each["id"] for each in await other.all("/v1/maps")}
