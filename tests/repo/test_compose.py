"""What `compose/` says agrees with itself and with the rest."""

import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from gurney.facade import FacadeSettings
from gurney.testing.stack import PINGS
from services.inference_server.settings import PREFIX, InferenceServerSettings
from services.mis.settings import MisSettings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
VARIABLE = re.compile(r"\bSITE_[A-Z_]+\b")


def variables(*files: Path) -> set[str]:
    """Return the settings of the site that files name."""
    return {name for file in files for name in VARIABLE.findall(file.read_text("utf-8"))}


def test_the_image_is_made_from_what_is_locked() -> None:
    """The locks of the image are the parts of requirements.lock that it needs."""
    command = [sys.executable, "-m", "scripts.image_lock", "--check"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stderr == ""


def test_every_setting_of_the_site_is_known() -> None:
    """Settings that the compose file or a script names are in .env.example, and no other is."""
    known = variables(COMPOSE / ".env.example")
    used = variables(*COMPOSE.glob("*.yaml"), COMPOSE / "setup", COMPOSE / "reset")
    assert used - {"SITE_ENV"} == known  # which names the file itself


def test_every_image_can_be_made_here() -> None:
    """scripts/images has a recipe for each image of the compose file."""
    named = subprocess.run(
        [sys.executable, "-c", "from scripts.build_images import RECIPES, images; print(*images().keys() - RECIPES)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert named.stdout.strip() == ""


def test_a_frozen_replica_is_soon_asked_no_more() -> None:
    """The NATS of the compose file, of the guide and of the stack find out within 15 s that a client is gone."""
    guide = (ROOT / "docs" / "howto" / "run-services.md").read_text("utf-8")
    for text in ((COMPOSE / "nats.conf").read_text("utf-8"), guide, PINGS):
        found = dict(re.findall(r'^ *(ping_\w+): "?(\d+)', text, re.MULTILINE))
        assert int(found["ping_interval"]) * (int(found["ping_max"]) + 1) <= 15


def test_jaeger_does_not_trace_itself() -> None:
    """What is asked of Jaeger makes no traces among ours."""
    assert "OTEL_TRACES_SAMPLER: always_off" in (COMPOSE / "compose.yaml").read_text("utf-8")


def test_archives_are_spooled_to_a_disk() -> None:
    """The edge's folder is on the host's disk, made by the setup and emptied by the reset; /tmp is small."""
    edge = re.search(
        r"^  edge:$(.*?)(?=^  \w)", (COMPOSE / "compose.yaml").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert edge is not None
    assert "GURNEY_DATA: /data" in edge[1]
    assert "- ${SITE_DATA}/edge:/data" in edge[1]
    assert re.search(r'"\$data"/\{[a-z,]*edge[,}]', (COMPOSE / "setup").read_text("utf-8"))
    assert len(re.findall(r"folders=\([a-z ]*\bedge\b", (COMPOSE / "reset").read_text("utf-8"))) == 2


@pytest.mark.parametrize(
    ("prefix", "facade", "ours"),
    [
        (PREFIX, InferenceServerSettings, {"TOKEN", "PUBLIC_PORT", "PRIVATE_PORT", "V2_PORT", "V2_TOKEN"}),
        ("GURNEY_MIS_", MisSettings, {"TOKEN", "PORT", "BASE_PATH"}),
    ],
)
def test_what_a_facade_can_be_told_it_is_told(prefix: str, facade: type[FacadeSettings], ours: set[str]) -> None:
    """Each setting of a façade reaches its container, but those that the compose file relies on and secrets."""
    text = "".join(file.read_text("utf-8") for file in COMPOSE.glob("*.yaml"))
    named = set(re.findall(rf"^ +{prefix}(\w+):", text, re.MULTILINE))
    known = {name.upper() for name in facade.model_fields}
    assert known - ours - {"ALLOW_PUBLIC_POST_MODEL"} == named


def accepts(certificate: Path, key: Path, name: str) -> bool:
    """Tell whether a client that trusts a certificate takes a server with it for a host."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.create_default_context(cafile=certificate)
    ends = [trusting.wrap_bio(one, other, server_hostname=name), server.wrap_bio(other, one, server_side=True)]
    for end in (*ends, *ends):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError:
            return False
    return True


@pytest.mark.parametrize(("name", "other"), [("gurney.example.org", "gurney.example.com"), ("192.0.2.7", "192.0.2.8")])
def test_clients_take_a_certificate_that_is_made_here(tmp_path: Path, name: str, other: str) -> None:
    """A client that trusts it takes it for the server's name or address, and for no other; its key is the owner's."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    command: list[str | Path] = [COMPOSE / "certificate", name, certificate, key]
    subprocess.run(command, check=True)
    assert [accepts(certificate, key, asked) for asked in (name, "localhost", other)] == [True, True, False]
    assert (key.stat().st_mode & 0o777, certificate.stat().st_mode & 0o777) == (0o600, 0o644)
    made = key.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr, key.read_bytes()) == (1, f"certificate: there is {key}\n", made)
