"""MONAI Inference Service's clients, against Gurney: every row of its contract, through HTTP."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gurney.testing.child import Child, free_port
from tests.e2e import work
from tests.e2e.api import Api, Json
from tests.e2e.servers import Server
from tests.e2e.test_runs import SLEEP, jobs, nothing_stays, unmarked
from tests.e2e.zips import MARK, packed, unpacked

GURNEY = Path(sys.executable).parent / "gurney"
CONFIGURATION, TEMPORARY = 78, 75
READY_WITHIN_S = 60

pytestmark = [pytest.mark.timeout(180)]

#: Runs the script in its input.
FOLDER = "urn:gurney:dir:shell"
COPY = f"""
echo "{MARK} in the log"
test "$MONAI_INPUTPATH" = "$HOLOSCAN_INPUT_PATH" && test -n "$MONAI_OUTPUTPATH" || exit 9
cp -r "$MONAI_INPUTPATH/in" "$MONAI_OUTPUTPATH/out"
mkdir -p "$MONAI_OUTPUTPATH/empty/inner"
"""


@dataclass
class Reply:
    """What the service said; `detail` where that is JSON."""

    status: int
    headers: Any
    body: bytes
    detail: Any


class Mis:
    """`gurney serve mis`, as a process, and its client."""

    def __init__(self, url: str, token: str, log: Path, *, urn: str = FOLDER, **changes: str) -> None:
        port = free_port()
        self.environment = {
            "GURNEY_MIS_SERVER": url,
            "GURNEY_MIS_TOKEN": token,
            "GURNEY_MIS_PORT": str(port),
            "GURNEY_MIS_MAP_URN": urn,
            "GURNEY_MIS_MAP_ENTRYPOINT": "/bin/sh -c exec${IFS}/bin/sh${IFS}$MONAI_INPUTPATH/run.sh",
            "GURNEY_MIS_MAP_OUTPUT_PATH": "/var/monai/output",
            "GURNEY_MIS_MAP_MEMORY": "256",
            **changes,
        }
        self.child = Child([GURNEY, "serve", "mis"], log, self.environment)
        self.base = f"http://127.0.0.1:{port}{changes.get('GURNEY_MIS_BASE_PATH', '')}"

    def start(self) -> None:
        self.child.start().until(lambda: "Gurney serves mis" in self.child.log.read_text(), READY_WITHIN_S)

    async def upload(self, body: bytes, field: str = "file", kind: str = "application/x-zip-compressed") -> Reply:
        form = aiohttp.FormData()
        form.add_field(field, body, filename="in.zip", content_type=kind)
        return await self.ask("POST", "/upload/", data=form)

    async def ask(self, method: str, path: str, **options: Any) -> Reply:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.base + path, allow_redirects=False, **options) as answer,
        ):
            body = await answer.read()
            detail = (await answer.json())["detail"] if answer.content_type == "application/json" else None
            return Reply(answer.status, answer.headers, body, detail)


@asynccontextmanager
async def serving(api: Api, log: Path, urn: str, **changes: str) -> AsyncIterator[Mis]:
    """Serve a MAP that does what its input says."""
    mis = Mis(api.url, api.token or "", log, urn=urn, **changes)
    await asyncio.to_thread(mis.start)
    try:
        yield mis
    finally:
        await asyncio.to_thread(mis.child.stop)


@pytest.fixture
def urn() -> str:
    """The MAP that is served."""
    return FOLDER


@pytest.fixture
async def mis(api: Api, tmp_path: Path, urn: str) -> AsyncIterator[Mis]:
    """The service as most tests have it."""
    async with serving(api, tmp_path / "mis.log", urn, GURNEY_MIS_TIMEOUT="20") as running:
        yield running


@pytest.fixture(autouse=True)
def _logs_are_calm(tmp_path: Path) -> Iterator[None]:
    """Hold the service to it that no client makes it stumble."""
    yield
    assert [log for log in tmp_path.glob("*.log") if "Traceback" in log.read_text()] == []


async def running(api: Api) -> Json:
    """Return the job that runs."""
    async with asyncio.timeout(work.PATIENCE_S):
        while not (found := [job for job in await jobs(api) if job["state"] == "running"]):
            await asyncio.sleep(0.01)
    return found[0]


async def settled(api: Api, server: Server) -> None:
    """Wait until every job is over and its data went, then hold what is left against the promise."""
    async with asyncio.timeout(work.PATIENCE_S):
        while not all(job["finalized_at"] for job in await jobs(api)):
            await asyncio.sleep(0.05)
        while await api.all("/v1/payloads"):
            await asyncio.sleep(0.05)
    await nothing_stays(api, server)


@pytest.mark.req("MIS-02", "MIS-03", "MIS-05", "MIS-11", "MIS-12")
async def test_a_zip_goes_in_and_the_output_folder_comes_out(mis: Mis, api: Api, server: Server) -> None:
    """200 with a zip whose entries lie below the output folder's name, empty folders too, and nothing stays."""
    for kind in ("application/x-zip-compressed", "application/zip", "application/octet-stream"):
        answer = await mis.upload(packed(COPY), kind=kind)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/zip"), answer.body
        assert unpacked(answer.body) == {
            "output/out/a.dcm": MARK.encode(),
            f"output/out/{MARK}/Müller.dcm": (MARK * 9).encode(),
            "output/empty/inner/": b"",
        }
    await settled(api, server)


@pytest.mark.req("MIS-12")
async def test_the_path_without_its_slash_leads_there(mis: Mis) -> None:
    """307, after which a client sends the same again; `GET /docs` is for people."""
    for method in ("POST", "GET"):
        answer = await mis.ask(method, "/upload", data=b"x")
        assert (answer.status, answer.headers["Location"]) == (307, "/upload/")
    page = await mis.ask("GET", "/docs")
    assert (page.status, page.headers["Content-Type"].partition(";")[0]) == (200, "text/html")
    assert [(await mis.ask(*asked)).status for asked in (("GET", "/upload/"), ("GET", "/none"))] == [405, 404]


@pytest.mark.req("MIS-02", "MIS-12")
async def test_bad_input_runs_nothing(mis: Mis, api: Api) -> None:
    """422 with a message for a part that is missing and for what is no zip, or leaves its folder."""
    missing = [
        await mis.upload(packed(), field="other"),
        await mis.ask("POST", "/upload/", data=b"x"),
        await mis.ask("POST", "/upload/", json={"file": "x"}),
        await mis.ask("POST", "/upload/", data={"file": "no file"}),
        await mis.ask("POST", "/upload/", data=b"x", headers={"Content-Type": "multipart/form-data; boundary=b"}),
        await mis.ask("POST", "/upload/", data=b"x", headers={"Content-Type": "multipart/form-data"}),
    ]
    for answer in missing:
        assert answer.status == 422, answer
        assert answer.detail[0]["loc"] == ["body", "file"], answer
    for body in (b"no zip", b"", packed()[:-30], packed(files={"../out": "x"}), packed(files={"/etc/x": "x"})):
        answer = await mis.upload(body)
        assert answer.status == 422, answer
        assert answer.detail
    assert await jobs(api) == []
    assert await api.all("/v1/payloads") == []


async def test_a_body_that_breaks_off_runs_nothing(mis: Mis, api: Api) -> None:
    """A part that ends too soon is no zip, and the next request is served."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await mis.ask("POST", "/upload/", data=head + packed()[:-30], headers=kind)
    assert answer.status == 422, answer
    assert await jobs(api) == []
    assert (await mis.upload(packed("true"))).status == 200


@pytest.mark.req("MIS-08", "MIS-12")
async def test_a_map_that_fails_is_told(mis: Mis, api: Api, server: Server) -> None:
    """500 with the exit code or the reason."""
    answer = await mis.upload(packed(f"echo {MARK}; exit 3"))
    assert answer.status == 500
    assert "failed: exit code 3" in answer.detail
    answer = await mis.upload(packed(f'ln -s /x "$MONAI_OUTPUTPATH/{MARK}"'))
    assert answer.status == 500
    assert "output_rejected" in answer.detail
    await settled(api, server)


@pytest.mark.req("MIS-07", "MIS-12")
async def test_a_request_past_its_time_is_ended(api: Api, server: Server, tmp_path: Path, urn: str) -> None:
    """500 that says so; then its job is over and nothing of its run is left."""
    async with serving(api, tmp_path / "mis.log", urn, GURNEY_MIS_TIMEOUT="1") as mis:
        answer = await mis.upload(packed(SLEEP))
        assert answer.status == 500
        assert "timed out after 1 s" in answer.detail
        assert [job["state"] in {"failed", "canceled"} for job in await jobs(api)] == [True]
        await settled(api, server)


@pytest.mark.req("MIS-06", "MIS-12")
async def test_one_request_at_a_time(mis: Mis, api: Api) -> None:
    """A second one meanwhile is told so by a 500 of its own, runs nothing, and the first one goes on."""
    first = asyncio.create_task(mis.upload(packed("sleep 1.5")))
    await running(api)
    second = await mis.upload(packed())
    assert second.status == 500
    assert "Another inference request" in second.detail
    assert (await first).status == 200
    assert len(await jobs(api)) == 1
    assert (await mis.upload(packed("true"))).status == 200


@pytest.mark.req("MIS-05")
async def test_a_client_that_goes_away_stops_the_job(mis: Mis, api: Api, server: Server) -> None:
    """Its run ends, nothing of it stays, and the next request is served."""
    asked = asyncio.create_task(mis.upload(packed(SLEEP)))
    job = await running(api)
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked
    assert (await work.ended(api, job["id"]))["state"] == "canceled"
    await settled(api, server)
    assert (await mis.upload(packed("true"))).status == 200


@pytest.mark.req("MIS-05")
async def test_a_kill_of_the_service_stops_the_job(mis: Mis, api: Api, server: Server) -> None:
    """Whoever kills it takes its request along, and nothing of that stays."""
    asked = asyncio.create_task(mis.upload(packed(SLEEP)))
    job = await running(api)
    await asyncio.to_thread(mis.child.kill)
    with pytest.raises(aiohttp.ClientError):
        await asked
    assert (await work.ended(api, job["id"]))["state"] == "canceled"
    await settled(api, server)


@pytest.mark.req("MIS-01", "MIS-11")
async def test_the_deployment_says_what_a_run_gets(api: Api, tmp_path: Path, urn: str) -> None:
    """CPU, memory, paths and timeout are those of the settings, and the base path stands before the routes."""
    changes = {
        "GURNEY_MIS_MAP_CPU": "2",
        "GURNEY_MIS_MAP_MEMORY": "300",
        "GURNEY_MIS_MAP_OUTPUT_PATH": "/data/results/",
        "GURNEY_MIS_MAP_MODEL_PATH": "/models",
        "GURNEY_MIS_BASE_PATH": "/mis/one",
        "GURNEY_MIS_TIMEOUT": "40",
    }
    async with serving(api, tmp_path / "mis.log", urn, **changes) as mis:
        answer = await mis.upload(packed('echo "$MONAI_MODELPATH" > "$MONAI_OUTPUTPATH/models"'))
        assert (answer.status, unpacked(answer.body)) == (200, {"results/models": b"/models\n"}), answer.body
        assert (await mis.ask("GET", "/docs")).status == 200
    (job,) = await jobs(api)
    assert (job["resources"]["cpu"], job["resources"]["memory"], job["timeout_s"]) == (2, 300 * 1024**2, 40)


async def test_the_map_is_registered_once(api: Api, tmp_path: Path, urn: str) -> None:
    """A second start finds it; another description is another MAP, and both may be served at a time."""
    for turn in range(2):
        async with (
            serving(api, tmp_path / f"one-{turn}.log", urn) as one,
            serving(api, tmp_path / f"two-{turn}.log", urn, GURNEY_MIS_MAP_ENTRYPOINT="/bin/false") as two,
        ):
            answers = await asyncio.gather(*(each.upload(packed("true")) for each in (one, two)))
            assert [answer.status for answer in answers] == [200, 500]
    assert len(await api.all("/v1/maps?state=ready")) == 2


@pytest.mark.req("MIS-01")
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MAP_URN", "", "GURNEY_MIS_MAP_URN: "),
        ("MAP_CPU", "0", "GURNEY_MIS_MAP_CPU: Input should be greater than or equal to 1"),
        ("MAP_MEMORY", "255", "GURNEY_MIS_MAP_MEMORY: Input should be greater than or equal to 256"),
        ("MAP_GPU", "-1", "GURNEY_MIS_MAP_GPU: "),
        ("MAP_GPU", "some", "GURNEY_MIS_MAP_GPU: "),
        ("MAP_INPUT_PATH", "in", "GURNEY_MIS_MAP_INPUT_PATH: "),
        ("MAP_ENTRYPOINT", "  ", "GURNEY_MIS_MAP_ENTRYPOINT: "),
        ("TIMEOUT", "0", "GURNEY_MIS_TIMEOUT: "),
        ("BASE_PATH", "mis/", "GURNEY_MIS_BASE_PATH: "),
        ("PORT", "70000", "GURNEY_MIS_PORT: "),
        ("SERVER", "nowhere", "GURNEY_MIS_SERVER: "),
        ("TOKEN", "", "GURNEY_MIS_TOKEN: "),
    ],
)
def test_a_bad_value_stops_the_start(tmp_path: Path, name: str, value: str, told: str) -> None:
    """One line says which setting is wrong, and no secret."""
    mis = Mis("http://127.0.0.1:9", "gurney_secret", tmp_path / "log", **{f"GURNEY_MIS_{name}": value})
    code, line = refused(mis)
    assert code == CONFIGURATION
    assert line.startswith(f"gurney: {told}")
    assert "gurney_secret" not in line


def refused(mis: Mis) -> tuple[int, str]:
    """Return the exit code of a start that fails, and the one line that it is told by."""
    command = [str(GURNEY), "serve", "mis", "--wait", "0"]
    told = subprocess.run(command, env=mis.environment, capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in told.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, told.stderr
    return told.returncode, lines[0]


async def test_what_it_cannot_start_for_is_told(api: Api, tmp_path: Path) -> None:
    """No server, a token that is none, and a MAP that is not there each end it with one line."""
    for url, token, changes, code, told in (
        ("http://127.0.0.1:9", "x", {}, TEMPORARY, "cannot reach"),
        (api.url, "wrong", {}, CONFIGURATION, "token"),
        (api.url, api.token or "", {"GURNEY_MIS_MAP_URN": "urn:gurney:dir:no-such"}, CONFIGURATION, "no-such"),
    ):
        found, line = await asyncio.to_thread(refused, Mis(url, token, tmp_path / "log", **changes))
        assert found == code, line
        assert told in line


# --- many ---


class Lot:
    """Requests of every kind, one after another, and how many there were."""

    def __init__(self, mis: Mis, api: Api) -> None:
        self._mis = mis
        self._api = api

    async def fine(self) -> None:
        assert (await self._mis.upload(packed(COPY))).status == 200

    async def failing(self) -> None:
        assert "exit code 3" in (await self._mis.upload(packed(f"echo {MARK}; exit 3"))).detail

    async def late(self) -> None:
        assert "timed out" in (await self._mis.upload(packed(SLEEP))).detail

    async def bad(self) -> None:
        assert (await self._mis.upload(MARK.encode())).status == 422

    async def gone(self) -> None:
        asked = asyncio.create_task(self._mis.upload(packed(SLEEP)))
        await running(self._api)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    async def gone_soon(self) -> None:
        """Go away at a moment that nobody chose: while the upload, the unpacking or the start goes on."""
        asked = asyncio.create_task(self._mis.upload(packed(SLEEP)))
        await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    async def killed(self) -> None:
        asked = asyncio.create_task(self._mis.upload(packed(SLEEP)))
        await running(self._api)
        await asyncio.to_thread(self._mis.child.kill)
        await asyncio.gather(asked, return_exceptions=True)
        self._mis.child.log.write_bytes(b"")
        await asyncio.to_thread(self._mis.start)


@pytest.mark.req("MIS-05")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [pytest.param(20, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)])
async def test_nothing_is_left_of_many_requests(api: Api, server: Server, tmp_path: Path, count: int, urn: str) -> None:
    """Whatever becomes of a request, after it disk, object store and documents have nothing of input or output."""
    async with serving(api, tmp_path / "mis.log", urn, GURNEY_MIS_TIMEOUT="0.5") as mis:
        lot = Lot(mis, api)
        kinds = [lot.fine] * 6 + [lot.failing] * 5 + [lot.late] * 2 + [lot.bad] * 2
        kinds += [lot.gone, lot.gone, lot.gone_soon, lot.gone_soon, lot.killed]
        for number in range(count):
            await kinds[number % len(kinds)]()
            await clean(api, server)
        await settled(api, server)


async def clean(api: Api, server: Server) -> None:
    """Wait until nothing is under way any more, then search."""
    async with asyncio.timeout(work.PATIENCE_S):
        while not all(job["finalized_at"] for job in (await api.get("/v1/jobs?limit=20")).items):
            await asyncio.sleep(0.02)
        while (await api.get("/v1/payloads")).items or (await api.get("/v1/payloads?state=draft")).items:
            await asyncio.sleep(0.02)
    await unmarked(server)  # a run's folder goes right after its end is told
