"""`gurney compat inference-server`, as people and scripts at an InferenceServer use it, against Gurney's façade."""

import asyncio
import io
import json
import re
import shutil
import ssl
import subprocess
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import BodyPartReader, web
from aiohttp.test_utils import TestServer
from yarl import URL

from gurney.testing.child import Child, free_port
from gurney.testing.embedded import GURNEY
from tests.e2e.api import Api
from tests.e2e.servers import Server
from tests.e2e.test_cli import CommandLine, Done, folder

READY_WITHIN_S = 60
PENDING = 75
COPY = 'cp "$HOLOSCAN_INPUT_PATH/scan" "$HOLOSCAN_OUTPUT_PATH/copy"; mkdir -p "$HOLOSCAN_OUTPUT_PATH/a/empty"'
SHELL = "urn:gurney:dir:shell"

pytestmark = [pytest.mark.timeout(180)]


@dataclass
class Facade:
    """`gurney serve inference-server`, and where its listeners are."""

    public: str
    private: str


@asynccontextmanager
async def serving(api: Api, data: Path, **changes: str) -> AsyncIterator[Facade]:
    """Serve with documents of its own; models may be posted to the public listener."""
    ports = [free_port(), free_port()]
    log = data.with_suffix(".log")
    environment = {
        "GURNEY_INFERENCE_SERVER_SERVER": api.url,
        "GURNEY_INFERENCE_SERVER_TOKEN": api.token or "",
        "GURNEY_INFERENCE_SERVER_DATA": str(data),
        "GURNEY_INFERENCE_SERVER_PUBLIC_PORT": str(ports[0]),
        "GURNEY_INFERENCE_SERVER_PRIVATE_PORT": str(ports[1]),
        "GURNEY_INFERENCE_SERVER_MEMORY": str(64 << 20),
        "GURNEY_INFERENCE_SERVER_CPU": "0.1",
        "ALLOW_PUBLIC_POST_MODEL": "yes",
        **changes,
    }
    child = Child([GURNEY, "serve", "inference-server"], log, environment)
    await asyncio.to_thread(lambda: child.start().until(lambda: "private, on" in log.read_text(), READY_WITHIN_S))
    try:
        public, private = (f"http://127.0.0.1:{port}" for port in ports)
        yield Facade(public, private)
    finally:
        await asyncio.to_thread(child.stop)
        assert re.findall("Traceback|request failed", log.read_text()) == []


@pytest.fixture
async def facade(api: Api, tmp_path: Path) -> AsyncIterator[Facade]:
    async with serving(api, tmp_path / "facade") as running:
        yield running


class Compat(CommandLine):
    """`gurney compat inference-server` of somebody who has no token."""

    def __init__(self, server: Server, facade: Facade) -> None:
        super().__init__(server, None)
        self.environment["GURNEY_INFERENCE_SERVER_URL"] = facade.public
        self.environment["GURNEY_INFERENCE_SERVER_PRIVATE_URL"] = facade.private

    async def __call__(self, *arguments: object, code: int = 0) -> Done:
        return await super().__call__("compat", "inference-server", *arguments, code=code)


@pytest.fixture
def compat(server: Server, facade: Facade) -> Compat:
    return Compat(server, facade)


async def ask(method: str, url: str, **options: Any) -> bytes:
    async with aiohttp.ClientSession() as session, session.request(method, url, **options) as answer:
        assert answer.status == 200, (answer.status, await answer.read())
        return await answer.read()


async def begin(url: str) -> None:
    """Ask for something large, and hang up when it begins to come."""
    at = URL(url)
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(f"GET {at.raw_path} HTTP/1.1\r\nHost: {at.host}\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.transport.abort()


def line_of(done: Done) -> str:
    """Return the one line that says why there is nothing on standard output."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gurney: ")
    return line


@pytest.mark.req("INF-01", "INF-02", "INF-07")
async def test_a_model_and_its_task(compat: Compat, facade: Facade, tmp_path: Path) -> None:
    """A model is posted, a folder is its task, and the output lies unpacked, and as a zip, where it should."""
    made = await compat.json("post-model", SHELL, "a shell", "--description", "runs", "--no-gpu")
    assert (made["container_tag"], made["use_gpu"], made["model_available"]) == (SHELL, False, False)
    source = folder(tmp_path, COPY, scan="voxels")
    done = await compat("post-task", "a shell", source, "--wait", "-o", tmp_path / "out")
    uid, said = done.stdout.splitlines()
    assert said.startswith(f"finished: {tmp_path / 'out'}, ")
    assert {each.relative_to(tmp_path / "out").as_posix() for each in (tmp_path / "out").rglob("*")} == {
        "copy",
        "a",
        "a/empty",
    }
    assert (tmp_path / "out" / "copy").read_text() == "voxels"
    assert (await compat("get-task", uid)).stdout == "finished\n"
    found = await compat.json("get-task", uid, "-o", tmp_path / "all.zip")
    assert (found["status"], found["state"], found["bytes"]) == (200, "finished", (tmp_path / "all.zip").stat().st_size)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert sorted(archive.namelist()) == ["a/empty/", "copy"]
    with zipfile.ZipFile(io.BytesIO(await ask("GET", f"{facade.private}/api/tasks/inputs/{uid}"))) as archive:
        assert sorted(archive.namelist()) == ["run.sh", "scan"]
    again = await compat.json("post-task", "a shell", tmp_path / "all.zip")
    sent = await ask("GET", f"{facade.private}/api/tasks/inputs/{again['uid']}")
    assert sent == (tmp_path / "all.zip").read_bytes()


@pytest.mark.req("INF-02", "INF-07")
@pytest.mark.slow
async def test_what_a_code_means(compat: Compat, facade: Facade, tmp_path: Path) -> None:
    """Each has a line and an exit code; only an output is a success."""
    await compat("post-model", SHELL, "shell", "--no-gpu")
    source = folder(tmp_path, "exit 3")
    done = await compat("post-task", "shell", source, "--wait", code=1)
    uid = done.stdout.strip()
    assert done.stderr == "gurney: it has failed, and there is no output (552)\n"
    assert "(552)" in line_of(await compat("get-task", uid, "-o", tmp_path / "out", code=1))
    assert not (tmp_path / "out").exists()
    (source / "run.sh").write_text("true")
    done = await compat("post-task", "shell", source, "--json", "--wait", "-o", tmp_path / "nothing")
    assert (json.loads(done.stdout)["state"], json.loads(done.stdout)["files"]) == ("finished", 0)
    assert done.stderr == f"task {json.loads(done.stdout)['uid']}\n"
    (source / "run.sh").write_text("sleep 60")
    uid = (await compat("post-task", "shell", source)).stdout.strip()
    assert "pending: it waits, or runs (551)" in line_of(await compat("get-task", uid, code=PENDING))
    told = json.loads((await compat("get-task", uid, "--json", "-o", tmp_path / "out", code=PENDING)).stdout)
    assert told == {"uid": uid, "status": 551, "state": "pending", "output": None, "files": None, "bytes": None}
    await ask("PUT", f"{facade.private}/api/tasks/", params={"uid": uid, "status": "1"})
    assert "(553)" in line_of(await compat("get-task", uid, "--wait", code=1))
    await ask("DELETE", f"{facade.public}/api/tasks/{uid}")
    assert "or it was deleted (554)" in line_of(await compat("get-task", uid, code=1))
    assert "(554)" in line_of(await compat("get-task", "-begins-with-a-hyphen", code=1))
    assert "no such model (550)" in line_of(await compat("post-task", "liver", source, code=1))


@pytest.mark.slow
async def test_who_only_asks_fetches_nothing(compat: Compat, facade: Facade, tmp_path: Path) -> None:
    """A large output is told of without being fetched, and the server takes that calmly."""
    await compat("post-model", SHELL, "shell", "--no-gpu")
    source = folder(tmp_path, 'head -c 50000000 /dev/urandom > "$HOLOSCAN_OUTPUT_PATH/large"')
    uid, _ = (await compat("post-task", "shell", source, "--wait")).stdout.splitlines()
    assert (await compat("get-task", uid)).stdout == "finished\n"
    for _ in range(20):
        await begin(f"{facade.public}/api/tasks/{uid}")
    assert (await compat.json("get-task", uid, "-o", tmp_path / "out"))["files"] == 1
    assert (tmp_path / "out" / "large").stat().st_size == 50_000_000


@pytest.mark.req("INF-07", "INF-12")
@pytest.mark.slow
async def test_what_is_refused(compat: Compat, facade: Facade, api: Api, server: Server, tmp_path: Path) -> None:
    """One line says why, and nothing was sent where it could be known before."""
    source = folder(tmp_path, "true")
    assert "add --wait" in line_of(await compat("post-task", "x", source, "-o", tmp_path / "out", code=1))
    assert "give files or folders" in line_of(await compat("post-task", "x", code=1))
    assert "/no/such" in line_of(await compat("post-task", "x", "/no/such.zip", code=1))
    assert "cannot write to /proc" in line_of(await compat("post-task", "x", source, "--wait", "-o", "/proc", code=1))
    await compat("post-model", SHELL, "shell")
    assert "(409)" in line_of(await compat("post-model", SHELL, "shell", code=1))
    assert "no public listener" in line_of(await compat("post-task", "shell", source, "--url", facade.private, code=1))
    async with serving(api, tmp_path / "closed", ALLOW_PUBLIC_POST_MODEL="") as closed:
        other = Compat(server, closed)
        assert "ALLOW_PUBLIC_POST_MODEL" in line_of(await other("post-model", SHELL, "shell", code=1))
        await other("post-model", SHELL, "shell", "--private")
        assert len(json.loads(await ask("GET", f"{closed.public}/api/models/"))) == 1


@pytest.mark.req("INF-01", "INF-10")
@pytest.mark.slow
async def test_models_move_to_another_server(
    compat: Compat, facade: Facade, api: Api, server: Server, tmp_path: Path
) -> None:
    """With their zips byte by byte; a second time, and where they are there, nothing changes."""
    content = tmp_path / "weights"
    content.mkdir()
    (content / "model.pt").write_bytes(bytes(range(256)) * 4_096)
    await compat("post-model", SHELL, "plain", "--no-gpu")
    made = await compat.json(
        "post-model", SHELL, "with weights", "--content", content, "--description", "Leber, größer"
    )
    assert made["model_available"]
    async with serving(api, tmp_path / "new", GURNEY_INFERENCE_SERVER_URL="http://not-a-setting") as new:
        there = Compat(server, new)
        copy = ("copy-models", "--from", facade.private)
        table = (await there(*copy, "--dry-run")).stdout
        assert table.count("would be copied") == 2
        assert json.loads(await ask("GET", f"{new.private}/api/models/")) == []
        assert "copied" in (await there(*copy, "--only", "plain")).stdout
        lines = [json.loads(line) for line in (await there(*copy, "--json")).stdout.splitlines()]
        assert {line["human_readable_id"]: line["outcome"] for line in lines} == {
            "plain": "skipped",
            "with weights": "copied",
        }
        assert (await there(*copy)).stdout.count("is there already") == 2
        assert "has no such model" in (await there(*copy, "--only", "none", code=1)).stdout
        before, after = [
            {each["human_readable_id"]: each for each in json.loads(await ask("GET", f"{url}/api/models/"))}
            for url in (facade.private, new.private)
        ]
        for name, found in before.items():
            same = ("container_tag", "description", "use_gpu", "model_available")
            assert [found[key] for key in same] == [after[name][key] for key in same]
        zips = [
            await ask("GET", f"{url}/api/models/zips/{models['with weights']['uid']}")
            for url, models in ((facade.private, before), (new.private, after))
        ]
        assert zips[0] == zips[1]
        assert zipfile.ZipFile(io.BytesIO(zips[0])).read("model.pt") == (content / "model.pt").read_bytes()
    assert "cannot reach" in line_of(await compat(*copy, "--to", "http://127.0.0.1:9", code=1))


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_a_large_folder_goes_by_https_and_is_never_in_memory(server: Server, tmp_path: Path) -> None:
    """The certificate counts that SSL_CERT_FILE names, and whatever the size, the command needs little memory."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate))  # fmt: skip
    await asyncio.to_thread(subprocess.run, made, capture_output=True, check=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    running: list[subprocess.Popen[str]] = []
    received: list[int] = []
    peaks: list[int] = []

    async def take(request: web.Request) -> web.Response:
        part = await (await request.multipart()).next()
        assert isinstance(part, BodyPartReader)
        received.append(0)
        while chunk := await part.read_chunk(1 << 20):
            received[-1] += len(chunk)
        status = Path(f"/proc/{running[0].pid}/status").read_text()
        peaks.extend(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return web.json_response("uid")

    app = web.Application()
    app.router.add_post("/api/tasks/", take)
    large = 300 << 20
    with (tmp_path / "series.dcm").open("wb") as file:
        file.truncate(large)
    site = TestServer(app, scheme="https", host="localhost")
    await site.start_server(ssl=tls)
    async with site:
        there = CommandLine(server, None)
        command = ("compat", "inference-server", "post-task", "spleen", tmp_path / "series.dcm")
        there.environment["GURNEY_INFERENCE_SERVER_URL"] = f"https://localhost:{site.port}"
        assert "certificate verify failed" in line_of(await there(*command, code=1))
        there.environment["SSL_CERT_FILE"] = str(certificate)
        running.append(there.start(*command))
        out, err = await asyncio.to_thread(running[0].communicate, timeout=60)
    assert (running[0].returncode, out, err) == (0, "uid\n", "")
    assert large < received[-1] < large + (1 << 20)
    (peak,) = peaks
    assert peak < 150 << 10, "KiB"
