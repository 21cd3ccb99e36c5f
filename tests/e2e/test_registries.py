"""Images of a private registry: registered, run and refused, while the credentials of the site show nowhere."""

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gurney.testing.collector import Collector
from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.registry import PASSWORDS, Registry, encoded
from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.servers import Server

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("registry")]

RIGHT, WRONG = PASSWORDS
NAME = "of-a-private-registry"
APP = {"command": '["sh", "-c", "env; exit 3"]', "input": {"path": "input/"}, "output": {"path": "output/"}}
FILES = {"etc/holoscan/app.json": json.dumps(APP), "etc/holoscan/pkg.json": '{"resources": {"memory": "64Mi"}}'}


@dataclass
class House:
    """A server, and all that it keeps or tells."""

    server: Server
    collector: Collector
    registry: Registry
    daemon: DockerDaemon
    configuration: Path
    reference: str

    def told(self) -> dict[str, bytes]:
        """Return every file that the server has made (messages, documents, objects, logs), MongoDB's, and spans."""
        files = [path for path in self.server.data.rglob("*") if path.is_file() and "mongo" not in path.parts]
        found = {str(path.relative_to(self.server.data)): path.read_bytes() for path in files}
        return found | {"logs": self.server.logs.encode(), "spans": b"".join(self.collector.bodies)}

    def documents(self) -> bytes:
        """Return every document of MongoDB, what was written and overwritten too; nothing where there is none."""
        if not isinstance(self.server, Stack):
            return b""
        with self.server.mongo.client() as client:
            names = [(client[database], database) for database in client.list_database_names()]
            return "".join(
                str([*each[name].find()]) for each, _ in names for name in each.list_collection_names()
            ).encode()

    def forget_image(self) -> None:
        """Take the image off the host."""
        client = self.daemon.client()
        for image in client.images(name=self.reference.rpartition(":")[0]):
            client.remove_image(image["Id"], force=True)
        client.close()


@pytest.fixture(
    params=["embedded", pytest.param("stack", marks=[pytest.mark.slow, pytest.mark.needs("mongo", "minio")])]
)
def house(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    maps: Path,
    docker_daemon: DockerDaemon,
    private_registry: Registry,
) -> Iterator[House]:
    """A server that says all it can, with the right password of a registry that has one image."""
    client = docker_daemon.client()
    make_image(client, f"{NAME}:1", FILES)
    reference = private_registry.push(client, f"{NAME}:1", NAME)
    client.close()
    configuration = tmp_path / "site" / "config.json"
    configuration.parent.mkdir()
    private_registry.log_in(configuration, RIGHT)
    with Collector() as collector:
        environment = ENVIRONMENT | {
            "GURNEY_DOCKER_URL": docker_daemon.url,
            "GURNEY_REGISTRY_CONFIG": str(configuration),
            "GURNEY_OTLP_ENDPOINT": collector.endpoint,
            "GURNEY_LOG_LEVEL": "debug",
            "GURNEY_TRANSFER_PATIENCE": "0.5",
            "GURNEY_ATTEMPTS": "1",
        }
        options: dict[str, Any] = {"agents": 1, "replicas": 1} if request.param == "stack" else {}
        kind = Stack if request.param == "stack" else EmbeddedProcess
        with kind(tmp_path / "data", maps, environment, **options) as server:
            made = House(server, collector, private_registry, docker_daemon, configuration, reference)
            made.forget_image()
            yield made
    made.forget_image()


async def registered(api: Api, house: House) -> Json:
    made = (await api.post("/v1/maps", {"urn": house.reference})).must(202).json
    return await work.settled(api, made["id"])


@pytest.mark.req("MAS-11")
async def test_credentials_show_nowhere(house: House) -> None:
    """With the right password, a wrong one and none: no document, event, log or span has one, whatever they tell."""
    async with Api(house.server.url, house.server.token) as api:
        made = await registered(api, house)
        assert made["state"] == "ready", made["reason"]
        await asyncio.to_thread(house.forget_image)
        ran = await work.ended(api, (await work.submit(api, made["id"], {"in": "x"}))["id"])
        assert ran["reason"]["code"] == "exit_nonzero"
        assert "HOLOSCAN_INPUT_PATH" in await work.log(api, ran)
        await asyncio.to_thread(house.forget_image)
        house.registry.log_in(house.configuration, WRONG)
        refused = await registered(api, house)
        assert (refused["state"], refused["reason"]["code"]) == ("invalid", "registry_denied")
        assert "GURNEY_REGISTRY_CONFIG" in refused["reason"]["message"]
        failed = await work.ended(api, (await work.submit(api, made["id"], {"in": "x"}))["id"])
        assert failed["reason"]["code"] == "image_unavailable"
        house.configuration.unlink()
        assert (await registered(api, house))["reason"]["code"] == "registry_denied"
        pages = [(await api.get(path)).must(200).body for path in ("/v1/maps", "/v1/jobs", "/metrics")]
    documents = await asyncio.to_thread(house.documents)
    await asyncio.to_thread(house.server.stop)
    told = await asyncio.to_thread(house.told)
    told |= {"documents": documents, "pages": b"".join(pages)}
    # What is searched is where the reason went, so a password would have been found there.
    places = {name for name, text in told.items() if b"registry_denied" in text}
    assert "pages" in places
    assert any("jetstream" in name for name in places)
    assert any(name == "documents" or "sqlite" in name for name in places), places
    assert told["logs"]
    assert told["spans"]
    secrets = [form for password in PASSWORDS for form in forms(password)]
    assert {name: form for name, text in told.items() for form in secrets if form in text} == {}


def forms(password: str) -> list[bytes]:
    """Return a password as it may show: plain, as in a configuration, in the header to the daemon."""
    alone = base64.b64encode(password.encode()).rstrip(b"=")
    header = base64.urlsafe_b64encode(b'"password": "' + password.encode())
    return [password.encode(), encoded(password).encode(), alone, header[4:-4]]
