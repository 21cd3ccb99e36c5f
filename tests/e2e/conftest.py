"""The servers of the end-to-end tests, as processes of their own, and clients in a project of each test.

Each test of the API runs twice: against the embedded server, and against the stack of services over MongoDB and MinIO.
"""

import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gurney.testing.docker import DockerDaemon
from gurney.testing.embedded import EmbeddedProcess
from gurney.testing.stack import Stack
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.applications import make_maps
from tests.e2e.inference_server import InferenceServer
from tests.e2e.servers import Server

#: Short waits, small limits of uploads and outputs, and a machine of two cores whatever this one has.
ENVIRONMENT = {
    "GURNEY_STOP_GRACE": "0.4",
    "GURNEY_MAX_UPLOAD": str(64 * 1024**2),
    "GURNEY_MAX_OUTPUT": str(64 * 1024**2),
    "GURNEY_CPU": "2",
    "GURNEY_DOCKER_URL": "none",
}

_projects = itertools.count(1)

ClientOf = Callable[..., Coroutine[Any, Any, Api]]


@pytest.fixture(scope="session")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of folder MAPs."""
    return make_maps(tmp_path_factory.mktemp("maps"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test against both kinds of servers, unless it is about one."""
    name = next((name for name in ("docker_server", "server") if name in metafunc.fixturenames), None)
    if name is not None:
        kinds: list[Any] = ["embedded"]
        if metafunc.definition.get_closest_marker("embedded") is None:
            kinds.append(pytest.param("stack", marks=[pytest.mark.slow, pytest.mark.needs("mongo", "minio")]))
        metafunc.parametrize(name, kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, maps: Path) -> Iterator[Server]:
    """The server that most tests share; nothing of it is to be stopped."""
    kind = Stack if request.param == "stack" else EmbeddedProcess
    options: dict[str, Any] = {"agents": 1} if request.param == "stack" else {}
    with kind(tmp_path_factory.mktemp(request.param) / "data", maps, ENVIRONMENT, **options) as running:
        yield running


@pytest.fixture(scope="session")
def docker_server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    maps: Path,
    docker_daemon: DockerDaemon,
) -> Iterator[Server]:
    """A server whose agent has the daemon: what modules about containers call `server`."""
    kind = Stack if request.param == "stack" else EmbeddedProcess
    options: dict[str, Any] = {"agents": 1} if request.param == "stack" else {}
    environment = ENVIRONMENT | {
        "GURNEY_DOCKER_URL": docker_daemon.url,
        "GURNEY_TRANSFER_PATIENCE": "2",
        # What MAPs of the field ask for; whether this machine has it does not matter here.
        "GURNEY_MEMORY": str(8 * 1024**3),
    }
    with kind(tmp_path_factory.mktemp(f"docker-{request.param}") / "data", maps, environment, **options) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path, maps: Path) -> Iterator[EmbeddedProcess]:
    """A running server for one test, which may stop it, kill it, and pause its nats-server."""
    with EmbeddedProcess(tmp_path / "data", maps, ENVIRONMENT) as running:
        yield running


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[Api]:
    """The administrator of the shared server, who sees all projects."""
    async with Api(server.url, server.token) as client:
        yield client


@pytest.fixture
async def anybody(server: Server) -> AsyncIterator[Api]:
    """A client without a token."""
    async with Api(server.url, None) as client:
        yield client


@pytest.fixture
def project() -> str:
    """A project that no other test uses."""
    return f"project-{next(_projects)}"


@pytest.fixture
async def client_of(admin: Api, project: str) -> AsyncIterator[ClientOf]:
    """Makes clients of a role, and if need be of a subject, in the test's project."""
    async with AsyncExitStack() as stack:

        async def client(role: str, subject: str = "somebody", **options: Any) -> Api:
            asked = {"subject": subject, "role": role, "project": project, **options}
            token = (await admin.post("/v1/tokens", asked)).must(201).json["token"]
            return await stack.enter_async_context(Api(admin.url, token))

        yield client


@pytest.fixture
async def api(client_of: ClientOf) -> AsyncIterator[Api]:
    """A developer in a project of his own, whose jobs end with the test, so that the next one has all the room."""
    client = await client_of("developer", "dev")
    yield client
    for job in (await client.get("/v1/jobs?limit=1000")).items:
        if job["state"] in {"requested", "scheduled", "running"}:
            await client.post(f"/v1/jobs/{job['id']}/cancel")
            await work.ended(client, job["id"])


@pytest.fixture(scope="module")
def inference_process(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServer]:
    """The façade for InferenceServer's clients that a module's tests share; nothing of it is to be stopped."""
    process = InferenceServer(server, tmp_path_factory.mktemp("inference"))
    process.start()
    yield process
    process.child.stop()


@pytest.fixture
async def inference(inference_process: InferenceServer) -> AsyncIterator[InferenceServer]:
    """The shared façade, whose tasks end with the test; no client makes it stumble."""
    yield inference_process
    await inference_process.over()
    assert inference_process.stumbles == []


@pytest.fixture
async def native(inference: InferenceServer) -> AsyncIterator[Api]:
    """Gurney's own API, in the façade's project."""
    async with Api(inference.server.url, inference.token) as client:
        yield client
