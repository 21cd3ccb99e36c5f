"""The server's log: two levels, the same in all services; lines for people on a terminal, else for machines."""

import asyncio
import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gurney.testing.embedded import GURNEY, EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.conftest import ENVIRONMENT

SERVICES = {"agent", "edge", "job", "map", "notifier", "payload", "scheduler"}

Line = dict[str, Any]


@pytest.fixture
def verbose_server(tmp_path: Path, maps: Path) -> Iterator[EmbeddedProcess]:
    """A server that logs at the verbose level."""
    with EmbeddedProcess(tmp_path / "data", maps, ENVIRONMENT | {"GURNEY_LOG_LEVEL": "debug"}) as running:
        yield running


@pytest.mark.req("MAS-03")
@pytest.mark.embedded
async def test_two_levels(server: EmbeddedProcess, verbose_server: EmbeddedProcess, api: Api) -> None:
    """By default each service logs alike what matters; at the verbose level each logs alike what it does, too."""
    job = await worked(api)
    default = lines_of(server)
    async with Api(verbose_server.url, verbose_server.token) as owner:
        verbose_job = await worked(owner)
    verbose = lines_of(verbose_server)
    for lines, ended in ((default, job), (verbose, verbose_job)):
        assert {line["service"] for line in lines if line["event"] == "serving"} == SERVICES
        assert any(line.get("job") == ended and line["level"] == "info" for line in lines)
        for line in lines:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["at"])
            assert {"part", "event"} <= line.keys()
    assert {line["level"] for line in default} <= {"info", "warning", "error"}
    assert {line.get("service", line["part"]) for line in verbose if line["level"] == "debug"} >= SERVICES


async def worked(api: Api) -> str:
    """Let every service do something; returns the id of a job that has ended."""
    (await api.post("/v1/handlers", {"url": "http://127.0.0.1:9/"})).must(201)
    return str((await work.shell(api, "true"))["id"])


def lines_of(server: EmbeddedProcess) -> list[Line]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


@pytest.mark.parametrize("log_format", ["auto", "json"])
@pytest.mark.embedded
async def test_terminal(server: EmbeddedProcess, tmp_path: Path, log_format: str) -> None:
    """On a terminal the log has short lines for people, and JSON all the same where the setting says so."""
    port = server.url.rpartition(":")[2]
    options = ("--data", str(tmp_path / "other"), "--port", port)  # taken: it ends by itself
    *told, last = await asyncio.to_thread(_up_on_a_terminal, options, {"GURNEY_LOG_FORMAT": log_format})
    assert last.startswith("gurney: cannot listen on")
    if log_format == "json":
        serving = {line["service"] for line in map(json.loads, told) if line["event"] == "serving"}
    else:
        said = [
            re.fullmatch(r"\d\d:\d\d:\d\d \[info     \] serving +part=service service=(\w+)", line) for line in told
        ]
        serving = {match[1] for match in said if match}
        assert not any("{" in line for line in told)
    assert serving == SERVICES - {"edge"}


def _up_on_a_terminal(options: tuple[str, ...], environment: dict[str, str]) -> list[str]:
    """Run `gurney up` to its end with a terminal, one without colours, as its standard error; returns its lines."""
    here, terminal = pty.openpty()
    process = subprocess.Popen(
        [str(GURNEY), "up", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env=os.environ | ENVIRONMENT | environment | {"NO_COLOR": "1"},
    )
    os.close(terminal)
    told = b""
    try:
        while chunk := os.read(here, 4096):
            told += chunk
    except OSError:  # Linux: nobody has the terminal any more
        pass
    os.close(here)
    assert process.wait(30) == 1
    return told.decode().splitlines()
