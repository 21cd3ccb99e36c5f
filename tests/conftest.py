"""What every test has: profiles, the two reports, servers, and a loop in which nothing may block."""

import ctypes
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from gurney import telemetry
from gurney.settings import Settings
from gurney.testing.docker import DockerDaemon
from gurney.testing.minio import minio
from gurney.testing.mongo import MongoServer
from gurney.testing.nats import NatsServer
from gurney.testing.nvml import VARIABLE, FakeNvml, build
from gurney.testing.registry import PASSWORDS, Registry
from gurney.testing.s3 import S3Server
from gurney.testing.versitygw import versitygw
from services.agent import gpus

pytest_plugins = [
    "tests.plugins.profiles",
    "tests.plugins.servers",
    "tests.plugins.requirements",
    "tests.plugins.matrix",
]


@pytest.fixture(autouse=True)
def blocking() -> Iterator[BlockBuster]:
    """A blocking call of Gurney's own code inside a running loop fails the test.

    Only stacks with a frame of `gurney` or `services` count: a test may read a file of its own. `gurney.testing` is
    made to be called from tests and counts as one. A test that needs an exception says where and why:
    `blocking.functions["os.stat"].can_block_in("some/file.py", "function")`.
    """
    with blockbuster_ctx(["gurney", "services"], excluded_modules=["gurney.testing"]) as guard:
        for call in ("os.stat", "io.BufferedReader.read", "io.TextIOWrapper.read"):
            if call in guard.functions:  # a logged traceback shows lines of source
                guard.functions[call].can_block_in("linecache.py", {"checkcache", "updatecache"})
        yield guard


@pytest.fixture(autouse=True, scope="session")
def telemetry_is_set_up() -> None:
    """Logs are JSON lines on standard error, as in production."""
    telemetry.setup(Settings(), "test")


@pytest.fixture(scope="session")
def session_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The nats-server of the whole run; tests ask for `nats_server`."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def nats_server(session_nats: NatsServer) -> Iterator[NatsServer]:
    """A running nats-server with JetStream and without streams; neither pause nor stop it."""
    yield session_nats
    session_nats.clean()


@pytest.fixture
def own_nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running nats-server for one test, which may pause, kill, wipe and start it again."""
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for NVIDIA's library, for tests that `needs("cc")`."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """What this process takes for NVIDIA's library, without GPUs until the test says otherwise."""
    with pretended(nvml_library, tmp_path / "nvml", monkeypatch) as fake:
        yield fake


@pytest.fixture
def old_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """The same as `nvml` with a driver of 2020."""
    with pretended(build(tmp_path, "-DOLD"), tmp_path / "nvml", monkeypatch) as fake:
        yield fake


@contextmanager
def pretended(library: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """Have this process take a library for NVIDIA's."""
    fake = FakeNvml(library, state)
    monkeypatch.setenv(VARIABLE, str(fake.state))
    monkeypatch.setattr(gpus, "LIBRARY", str(library))
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    yield fake
    fake.says()  # a call that hangs comes back


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The MinIO of the whole run, for tests that `needs("minio")`: take a bucket of your own, leave it running."""
    with minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="session")
def versitygw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The versitygw of the whole run, for tests that `needs("versitygw")`; as `minio_server`."""
    with versitygw(tmp_path_factory.mktemp("versitygw")) as server:
        yield server


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """The mongod of the whole run, for tests that `needs("mongo")`: take a database of your own, let it run."""
    with MongoServer(tmp_path_factory.mktemp("mongo")) as server:
        yield server


@pytest.fixture(scope="session")
def docker_daemon() -> Iterator[DockerDaemon]:
    """The dockerd of the whole run, for tests that `needs("docker")`: they may kill and start it, one at a time."""
    with DockerDaemon(Path(tempfile.mkdtemp(prefix="gurney-docker-"))) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """The image registry of the whole run, for tests that `needs("registry")`: names are to be of your own."""
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def private_registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry for one test that asks for a password, for tests that `needs("registry")`."""
    with Registry(tmp_path / "registry", next(iter(PASSWORDS))) as running:
        yield running


@pytest.fixture
def own_mongo(tmp_path: Path) -> Iterator[MongoServer]:
    """A running mongod for one test, which may pause, kill and start it again."""
    with MongoServer(tmp_path / "mongo") as server:
        yield server


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[S3Server]:
    """A running MinIO for one test, which may pause, kill and start it again."""
    with minio(tmp_path / "minio") as server:
        yield server
