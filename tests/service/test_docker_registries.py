"""Private registries: who gets images of them, what is told to who does not, and that no password shows."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.parse import parse_qs
from urllib.request import Request, urlopen

import pytest

from gurney.errors import ImageUnavailable, MapUnreadable
from gurney.runtime.docker.daemon import Client
from gurney.runtime.docker.registries import without
from gurney.runtime.docker.runtime import DockerRuntime
from gurney.testing.docker import DockerDaemon, make_image
from gurney.testing.registry import PASSWORDS, USER, Registry, encoded
from tests.contract.docker_harness import FILES

pytestmark = [pytest.mark.needs("docker"), pytest.mark.needs("registry")]

ONE, TWO = PASSWORDS


class Site:
    """A runtime with credentials of its own, and a private image that its host has not."""

    def __init__(self, base: Path, daemon: DockerDaemon, registry: Registry) -> None:
        self.registry = registry
        self.configuration = base / "config.json"
        self.runtime = DockerRuntime(base / "data", node="n1", url=daemon.url, registry_config=self.configuration)
        self.client: Client = daemon.client()
        name = f"private-{os.urandom(4).hex()}"
        make_image(self.client, f"{name}:1", FILES | {"etc/name": name})
        self.reference = registry.push(self.client, f"{name}:1", name)
        self.repository = self.reference.rpartition(":")[0]
        for each in (f"{name}:1", self.reference):
            self.client.remove_image(each)

    @property
    def urn(self) -> str:
        return f"urn:oci:{self.reference}"

    async def digest(self) -> str:
        """Register, and return the digest; raises `MapUnreadable`."""
        return (await self.runtime.inspect(self.urn)).digest

    async def refused(self, urn: str | None = None) -> MapUnreadable:
        """Return what is told to who registers; it shows no password."""
        with pytest.raises(MapUnreadable) as told:
            await self.runtime.inspect(urn or self.urn)
        shows_no_password(str(told.value))
        return told.value

    async def forget_image(self, digest: str) -> None:
        await asyncio.to_thread(self.client.remove_image, f"{self.repository}@{digest}")


def shows_no_password(text: str) -> None:
    """Fail where a password of this file shows, in whichever form; or what is more than a line."""
    for password in PASSWORDS:
        assert password not in text
        assert encoded(password) not in text
        assert base64.b64encode(password.encode()).decode().rstrip("=") not in text
    assert "\n" not in text


@pytest.fixture
def closed_site(tmp_path: Path, docker_daemon: DockerDaemon, private_registry: Registry) -> Iterator[Site]:
    """A site whose runtime is not open."""
    site = Site(tmp_path, docker_daemon, private_registry)
    yield site
    for image in site.client.images(name=site.repository):
        site.client.remove_image(image["Id"], force=True)
    site.client.close()


@pytest.fixture
async def site(closed_site: Site) -> AsyncIterator[Site]:
    """A site with the right password."""
    closed_site.registry.log_in(closed_site.configuration, ONE)
    await closed_site.runtime.open()
    yield closed_site
    await closed_site.runtime.close()


async def test_with_the_right_password(site: Site) -> None:
    """A private image is registered and brought to a node by the credentials of the site."""
    digest = await site.digest()
    await site.forget_image(digest)
    await site.runtime.available(site.urn, digest)
    assert await asyncio.to_thread(site.client.image, f"{site.repository}@{digest}") is not None


async def test_with_a_wrong_password(site: Site) -> None:
    """Who registers is told that the registry refuses, and which setting to look at; a run that its image is away."""
    digest = await site.digest()
    await site.forget_image(digest)
    site.registry.log_in(site.configuration, TWO)
    told = await site.refused()
    assert told.reason == "registry_denied"
    assert "GURNEY_REGISTRY_CONFIG has credentials that it does not accept" in str(told)
    with pytest.raises(ImageUnavailable) as missing:
        await site.runtime.available(site.urn, digest)
    shows_no_password(str(missing.value))
    assert "GURNEY_REGISTRY_CONFIG" in str(missing.value)


@pytest.mark.parametrize("content", [None, "{}", '{"auths": {"other.example": {"auth": "YTpi"}}}'])
async def test_without_a_password(site: Site, content: str | None) -> None:
    """A configuration that is not there, is empty, or is for other registries, has no credentials for this one."""
    site.configuration.unlink()
    if content is not None:
        site.configuration.write_text(content)
    told = await site.refused()
    assert told.reason == "registry_denied"
    assert "GURNEY_REGISTRY_CONFIG has no credentials for it" in str(told)


@pytest.mark.parametrize(
    "content",
    [ONE, f'{{"auths": "{ONE}"}}', f'{{"auths": {{"REGISTRY": {{"auth": "{ONE}"}}}}}}', f'["{ONE}"]'],
    ids=["no-json", "no-auths", "no-base64", "no-object"],
)
async def test_a_broken_configuration(site: Site, content: str) -> None:
    """A configuration that cannot be read is told as such, without what stands in it."""
    site.configuration.write_text(content.replace("REGISTRY", site.registry.address))
    told = await site.refused()
    assert told.reason == "image_unavailable"
    assert "GURNEY_REGISTRY_CONFIG" in str(told)


async def test_a_password_that_changes(site: Site) -> None:
    """A new password counts from the next pull on, without a restart."""
    digest = await site.digest()
    await site.forget_image(digest)
    site.registry.let_in(TWO)
    with pytest.raises(ImageUnavailable):
        await site.runtime.available(site.urn, digest)
    site.registry.log_in(site.configuration, TWO)
    await site.runtime.available(site.urn, digest)


@pytest.mark.parametrize("pushed", [True, False], ids=["of-the-registry", "built-here"])
async def test_an_image_of_this_host_that_its_registry_refuses(site: Site, *, pushed: bool) -> None:
    """What came from a registry is not taken for what it has now, if it refuses; what was built for it here is."""
    if pushed:
        credentials = {"username": USER, "password": ONE}
        await asyncio.to_thread(site.client.pull, site.reference, auth_config=credentials)
    else:
        await asyncio.to_thread(make_image, site.client, site.reference, FILES)
    site.registry.log_in(site.configuration, TWO)
    if pushed:
        assert (await site.refused()).reason == "registry_denied"
    else:
        built = await asyncio.to_thread(site.client.image, site.reference)
        assert built is not None
        assert await site.digest() == built["Id"]


async def test_what_is_not_there_and_who_is_away(site: Site) -> None:
    """An image that the registry has not, and a registry that does not answer, are told apart."""
    assert (await site.refused(f"urn:oci:{site.registry.address}/nothing:1")).reason == "not_found"
    await asyncio.to_thread(site.registry.stop)
    told = await site.refused()
    assert told.reason == "image_unavailable"
    assert "refused" in str(told)


HELPER = """#!/bin/sh
read -r server
if [ "$server" = "{address}" ]; then
    echo '{{"ServerURL": "{address}", "Username": "{user}", "Secret": "{password}"}}'
else
    echo "no {password} for $server"; exit 1
fi
"""


async def test_credentials_of_a_helper(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that the configuration names gives the credentials; what it says when it fails is not told."""
    helper = tmp_path / "bin" / "docker-credential-site"
    helper.parent.mkdir()
    address = site.registry.address
    helper.write_text(HELPER.format(address=address, user=USER, password=ONE))
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    site.configuration.write_text(json.dumps({"auths": {}, "credHelpers": {address: "site"}}))
    digest = await site.digest()
    await site.forget_image(digest)
    helper.write_text(HELPER.format(address="other", user=USER, password=ONE))
    told = await site.refused()
    assert (told.reason, "GURNEY_REGISTRY_CONFIG" in str(told)) == ("image_unavailable", True)


class Parrot(BaseHTTPRequestHandler):
    """A registry that repeats in its errors what it was sent."""

    def do_GET(self) -> None:  # the base class names it
        sent = self.headers["Authorization"] or ""
        text = f"{sent} {base64.b64decode(sent.partition(' ')[2]).decode()}"
        body = json.dumps({"errors": [{"code": "UNKNOWN", "message": text}]}).encode()
        self.send_response(400 if sent else 401)
        if not sent:
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  as above

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a loopback port; yields host and port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_registry_that_repeats_the_password(site: Site) -> None:
    """What a registry says is told without the password that we sent it."""
    with serving(Parrot) as address:
        site.configuration.write_text(json.dumps({"auths": {address: {"auth": encoded(ONE)}}}))
        told = await site.refused(f"urn:oci:{address}/app:1")
        assert "Basic *** " in str(told)
        with pytest.raises(ImageUnavailable) as missing:
            await site.runtime.available(f"urn:oci:{address}/app:1", f"sha256:{'0' * 64}")
        shows_no_password(str(missing.value))
        assert "***" in str(missing.value)


IDENTITY, ACCESS = "identity-token-1", "access-token-1"


class Gate(BaseHTTPRequestHandler):
    """The way of the Distribution specification to a registry: a token is asked for, by password or identity token."""

    #: Of a registry that lets everybody in.
    behind: str

    def do_GET(self) -> None:  # the base class names it
        if self.path.startswith("/token"):
            return self._token(self.headers["Authorization"] == f"Basic {encoded(ONE)}")
        if self.headers["Authorization"] != f"Bearer {ACCESS}":
            realm = f'Bearer realm="http://{self.headers["Host"]}/token",service="gate"'
            return self._answer(401, {"WWW-Authenticate": realm}, b"{}")
        asked = Request(f"http://{self.behind}{self.path}", method=self.command)
        asked.add_header("Accept", ", ".join(self.headers.get_all("Accept") or ["*/*"]))
        try:
            with urlopen(asked) as told:  # noqa: S310  of http
                return self._answer(told.status, dict(told.headers), told.read())
        except HTTPError as error:
            return self._answer(error.code, dict(error.headers), error.read())

    do_HEAD = do_GET  # noqa: N815  as above

    def do_POST(self) -> None:  # as above
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self._token(form.get("refresh_token") == [IDENTITY])

    def _token(self, is_known: bool) -> None:  # noqa: FBT001
        told = {"token": ACCESS, "access_token": ACCESS} if is_known else {"details": "unauthorized"}
        self._answer(200 if is_known else 401, {"Content-Type": "application/json"}, json.dumps(told).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"date", "server"}:
                self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [({"auth": encoded(ONE)}, {"auth": encoded(TWO)}), ({"identitytoken": IDENTITY}, {"identitytoken": "gone"})],
    ids=["password", "identity-token"],
)
async def test_a_registry_that_hands_out_tokens(
    site: Site, registry: Registry, right: dict[str, str], wrong: dict[str, str]
) -> None:
    """Where a registry sends to another place for a token, password and identity token are good for one."""
    name = f"behind-{os.urandom(4).hex()}"
    await asyncio.to_thread(make_image, site.client, f"{name}:1", FILES | {"etc/name": name})
    pushed = await asyncio.to_thread(registry.push, site.client, f"{name}:1", name)
    for each in (f"{name}:1", pushed):
        await asyncio.to_thread(site.client.remove_image, each)
    with serving(type("TheGate", (Gate,), {"behind": registry.address})) as address:
        site.configuration.write_text(json.dumps({"auths": {address: right}}))
        urn = f"urn:oci:{address}/{name}:1"
        digest = (await site.runtime.inspect(urn)).digest
        await asyncio.to_thread(site.client.remove_image, f"{address}/{name}@{digest}")
        await site.runtime.available(urn, digest)
        await asyncio.to_thread(site.client.remove_image, f"{address}/{name}@{digest}")
        site.configuration.write_text(json.dumps({"auths": {address: wrong}}))
        told = await site.refused(urn)
        assert told.reason == "registry_denied"
        assert IDENTITY not in str(told)


def test_no_form_of_a_secret_is_told() -> None:
    """Passwords and tokens go out of a text as they are, quoted, and as base64."""
    password = {"username": "me", "password": "p/w x"}
    text = f"p/w x p%2Fw%20x {base64.b64encode(b'me:p/w x').decode()} me"
    assert without(password, text) == "*** *** *** me"
    assert without({"IdentityToken": "token-1", "ServerAddress": "here"}, "token-1 at here") == "*** at here"
    assert without({}, "nothing to hide") == "nothing to hide"
