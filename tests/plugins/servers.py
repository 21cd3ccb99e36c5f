"""Servers that a test may need and a machine may lack: `@pytest.mark.needs("docker")`.

A test whose server is missing is left out, and the run says why. `GURNEY_REQUIRE=nats,docker` names servers that must
be there: a run where one of them is missing is refused, so that nothing is left out unseen.
"""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest

from gurney.testing import disk, nats, network, nvml
from gurney.testing.tools import tool

left_out = pytest.StashKey[Counter[str]]()


def no_nats() -> str | None:
    """Say what keeps tests from a nats-server, None when nothing does."""
    server = nats.binary()
    if server is None:
        return "no nats-server beside this Python or on PATH"
    if nats.version(server) < nats.MINIMUM:
        return f"{server} is older than {'.'.join(map(str, nats.MINIMUM))}"
    return None


def no_docker() -> str | None:
    """Say what keeps tests from a Docker daemon, None when nothing does."""
    if shutil.which("docker") is None:
        return "no docker on PATH"
    try:
        asked = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return "the Docker daemon does not answer"
    return None if asked.returncode == 0 else (asked.stderr.strip().splitlines() or ["docker info failed"])[-1]


def no_program(name: str) -> Callable[[], str | None]:
    """Return a probe that looks for a program that `scripts/tools` provides, or on PATH."""
    return lambda: None if tool(name) else f"no {name}: scripts/tools {name} provides it"


#: Server -> a probe that says why it is not there.
PROBES: dict[str, Callable[[], str | None]] = {
    "nats": no_nats,
    "docker": no_docker,
    "mongo": no_program("mongod"),
    "minio": no_program("minio"),
    "versitygw": no_program("versitygw"),
    "registry": no_program("registry"),
    "jaeger": no_program("jaeger"),
    "prometheus": no_program("prometheus"),
    "caddy": no_program("caddy"),
    "compose": no_program("compose"),
    "tmpfs": disk.missing,
    "netns": network.missing,
    "cc": nvml.missing,
}


@cache
def missing(server: str) -> str | None:
    """Return why a server is not there, asked once a run."""
    return PROBES[server]()


def required() -> set[str]:
    """Return the servers that `GURNEY_REQUIRE` names."""
    return {name.strip() for name in os.environ.get("GURNEY_REQUIRE", "").split(",")} - {""}


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; refuse to run where a required server is unknown or missing."""
    config.addinivalue_line("markers", f"needs(server): left out where it is not there: {', '.join(PROBES)}")
    config.stash[left_out] = Counter()
    for server in sorted(required()):
        if server not in PROBES:
            raise pytest.UsageError(f"GURNEY_REQUIRE names {server!r}; known are {', '.join(PROBES)}")
        if (reason := missing(server)) is not None:
            raise pytest.UsageError(f"GURNEY_REQUIRE names {server!r}, and it is not there: {reason}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave a test out whose server is not there."""
    for marker in item.iter_markers("needs"):
        for server in marker.args:
            if (reason := missing(server)) is not None:
                item.config.stash[left_out][f"`{server}`: {reason}"] += 1
                pytest.skip(f"needs {server}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which tests were left out for want of a server."""
    for reason, count in sorted(config.stash[left_out].items()):
        terminalreporter.write_line(f"left out: {count} test(s) that need {reason}")
