"""Who reaches the private listener of InferenceServer's façade: nobody from outside a private network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from services.inference_server.near import foreign, is_near
from services.inference_server.server import _answered
from services.inference_server.settings import Listener

GURNEY = Path(sys.executable).parent / "gurney"
#: Exit code of sysexits.h.
CONFIGURATION = 78


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("172.31.255.255", True),
        ("192.168.7.7", True),
        ("169.254.1.1", True),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("::ffff:192.168.0.1", True),
        ("8.8.8.8", False),
        ("172.32.0.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # it is refused
        ("::", False),
        ("::ffff:8.8.8.8", False),
        ("192.0.2.1", False),
        ("203.0.113.9", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("2001:0:53aa:64c:0:fbff:5bd5:c4e4", False),  # Teredo
        ("64:ff9b:1::808:808", False),
        ("2606:4700::1", False),
        ("", False),
        ("nobody", False),
        (None, False),
    ],
)
def test_near_is_what_cannot_be_reached_from_the_internet(address: str | None, *, near: bool) -> None:
    """Loopback, private networks and links, also where IPv4 is written as IPv6; anything else is foreign."""
    assert is_near(address) is near


@pytest.mark.parametrize(("listener", "status"), [("private", 403), ("public", 200), ("v2", 200)])
@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1"])
async def test_the_private_listener_answers_no_foreigner(listener: Listener, status: int, address: str) -> None:
    """403 before anything is looked at, whatever he asks; the others answer everybody."""
    asked = make_mocked_request("DELETE", "/api/tasks/x").clone(remote=address)

    async def view(_: web.Request) -> web.Response:
        return web.Response()

    assert (await _answered(asked, view, listener)).status == status


@pytest.mark.parametrize(
    ("host", "headers", "answered"),
    [
        ("127.0.0.1:7000", {"Origin": "http://127.0.0.1:7000"}, True),
        ("localhost:7000", {"Sec-Fetch-Site": "none"}, True),
        ("inference-server:7000", {"Origin": "http://inference-server:7000"}, True),
        ("old.example.org:7000", {}, True),
        ("[::1]:7000", {"Sec-Fetch-Site": "same-origin"}, True),
        ("127.0.0.1:7000", {"Origin": "http://evil.example"}, False),
        ("127.0.0.1:7000", {"Origin": "null"}, False),
        ("evil.example:7000", {"Origin": "http://evil.example:7000"}, False),
        ("evil.example:7000", {"Sec-Fetch-Site": "same-origin"}, False),
    ],
)
def test_a_browser_is_answered_where_no_page_of_others_asks(
    host: str, headers: dict[str, str], *, answered: bool
) -> None:
    """Neither for a page of another site, nor for one whose name leads here by now; programs may use any name."""
    asked = make_mocked_request("GET", "/api/tasks/", headers={"Host": host, **headers}).clone(remote="127.0.0.1")
    assert (foreign(asked) is None) is answered


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("0.0.0.0", "is no address of a private network"),  # it is refused
        ("::", "is no address of a private network"),
        ("8.8.8.8", "is no address of a private network"),
        ("no-such-host.invalid", ""),
        ("", ""),
    ],
)
def test_a_private_listener_for_everybody_stops_the_start(tmp_path: Path, host: str, says: str) -> None:
    """Exit code 78 and one line that names the setting, before anything is opened."""
    environment = {
        "GURNEY_INFERENCE_SERVER_TOKEN": "gurney_secret",
        "GURNEY_INFERENCE_SERVER_DATA": str(tmp_path / "data"),
        "GURNEY_INFERENCE_SERVER_PRIVATE_HOST": host,
    }
    told = subprocess.run(
        [GURNEY, "serve", "inference-server"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = [line for line in told.stderr.splitlines() if not line.startswith("{")]
    assert told.returncode == CONFIGURATION
    assert line.startswith(f"gurney: GURNEY_INFERENCE_SERVER_PRIVATE_HOST: {host}")
    assert says in line
    assert not (tmp_path / "data").exists()
