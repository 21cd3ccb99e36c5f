"""Starts RabbitMQ and a Celery worker for one run of the benchmark, on loopback, in a folder of their own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
READY_WITHIN_S = 120


def missing() -> str | None:
    """Say what is not there."""
    if _rabbitmq() is None:
        return "rabbitmq-server (the distribution's package)"
    try:
        import celery  # noqa: F401
    except ImportError:
        return "celery: .venv/bin/pip install --require-hashes -r bench/requirements.lock"
    return None


def _rabbitmq() -> str | None:
    """Return the server's own script: Debian's wrapper changes the user, who could not use our folder."""
    behind = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return str(behind) if behind.exists() else shutil.which("rabbitmq-server")


@contextmanager
def celery(folder: Path, concurrency: int) -> Iterator[dict[str, Callable[[], Any]]]:
    """Yield what submits each task and returns its result object."""
    port = _free_port()
    os.environ["BENCH_BROKER"] = f"amqp://guest:guest@127.0.0.1:{port}//"
    broker = subprocess.Popen(
        [str(_rabbitmq())],
        env=os.environ
        | {
            "RABBITMQ_NODENAME": f"bench{os.getpid()}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(_free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "HOME": str(folder),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    worker = None
    try:
        _wait(lambda: _listens(port))
        command = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-P", "prefork", "-l", "ERROR"]
        worker = subprocess.Popen([*command, "-c", str(concurrency)], cwd=HERE, start_new_session=True)
        sys.path.insert(0, str(HERE))
        import celery_app

        _wait(lambda: bool(celery_app.app.control.ping(timeout=1)))
        yield {"noop": celery_app.noop.delay, "spawn": celery_app.spawn.delay}
    finally:
        for process in (worker, broker):
            if process:
                os.killpg(process.pid, 15)
                process.wait(30)


def _wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not ready():
        if time.monotonic() > deadline:
            sys.exit("Celery's side did not start")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
