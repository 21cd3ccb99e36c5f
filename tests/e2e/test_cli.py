"""The command line and the blocking client, as people and scripts use them."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster

from gurney.client import Client
from gurney.errors import JobLive, NotFound
from gurney.testing.embedded import GURNEY
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.servers import Server

Done = subprocess.CompletedProcess[str]


def environment(server: Server, token: str | None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GURNEY_")}
    return clean | {"GURNEY_URL": server.url, "COLUMNS": "200"} | ({"GURNEY_TOKEN": token} if token else {})


class CommandLine:
    """`gurney` with the token of one client."""

    def __init__(self, server: Server, token: str | None) -> None:
        self.environment = environment(server, token)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(GURNEY), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    async def __call__(self, *arguments: object, code: int = 0) -> Done:
        """Run a command to its end and hold it against its exit code."""

        def run() -> Done:
            command = [str(GURNEY), *map(str, arguments)]
            return subprocess.run(
                command, capture_output=True, text=True, env=self.environment, timeout=60, check=False
            )

        done = await asyncio.to_thread(run)
        assert done.returncode == code, (arguments, done)
        return done

    async def json(self, *arguments: object, code: int = 0) -> Any:
        return json.loads((await self(*arguments, "--json", code=code)).stdout)


@pytest.fixture
def gurney(server: Server, api: Api) -> CommandLine:
    """The command line of a developer."""
    return CommandLine(server, api.token)


def folder(tmp_path: Path, script: str, **files: str) -> Path:
    """Write a folder with a script and other files."""
    made = tmp_path / "input"
    made.mkdir()
    for name, text in {"run.sh": script, **files}.items():
        (made / name).write_text(text)
    return made


@pytest.mark.req("INF-07")
async def test_run(gurney: CommandLine, api: Api, tmp_path: Path) -> None:
    """`gurney run` registers, uploads, submits, shows states and log, and downloads the results."""
    script = 'echo from the application; cp "$HOLOSCAN_INPUT_PATH/scan" "$HOLOSCAN_OUTPUT_PATH/copy"'
    source = folder(tmp_path, script, scan="voxels")
    done = await gurney("run", "urn:gurney:dir:shell", source, "-o", tmp_path / "out", "--name", "first")
    assert done.stdout == "from the application\n"
    assert "succeeded" in done.stderr
    assert "1 results" in done.stderr
    assert (tmp_path / "out" / "copy").read_text() == "voxels"
    again = await gurney.json("run", "urn:gurney:dir:shell", source, "--keep")
    assert (again["state"], again["finalized_at"]) == ("succeeded", None)
    (first,) = [each for each in await api.all("/v1/jobs") if each["name"] == "first"]
    (await api.get(f"/v1/payloads/{first['payload']}", case="its job is finalized")).must(404)
    (await api.get(f"/v1/payloads/{again['payload']}")).must(200)
    maps = await gurney("map", "ls", "--json")
    assert len(maps.stdout.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("script", "options", "code"), [("exit 7", (), 7), ("sleep 30", ("--timeout", "0.3"), 143)])
async def test_exit_code_of_the_outcome(
    gurney: CommandLine, tmp_path: Path, script: str, options: tuple[str, ...], code: int
) -> None:
    """The exit code is the application's own, also where the server ended it."""
    source = folder(tmp_path, script)
    done = await gurney("run", "urn:gurney:dir:shell", source, *options, code=code)
    assert "failed" in done.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs begun here hear SIGINT, also where it is ignored, as for what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
async def test_interrupt(gurney: CommandLine, api: Api, tmp_path: Path) -> None:
    """Ctrl-C cancels the job."""
    source = folder(tmp_path, "echo begun; sleep 60")
    process = gurney.start("run", "urn:gurney:dir:shell", source)
    assert process.stdout
    assert await asyncio.to_thread(process.stdout.readline) == "begun\n"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.to_thread(process.communicate, timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    (job,) = await api.all("/v1/jobs")
    assert (await work.ended(api, job["id"]))["state"] == "canceled"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "no such map", "/etc/hostname"), "no such map"),
        (("run", "urn:gurney:dir:shell", "/no/such/path"), "/no/such/path"),
        (("run", "urn:gurney:dir:no-manifest", "/etc/hostname"), "manifest_missing"),
        (("map", "show", "nothing"), "nothing"),
        (("map", "register", "urn:nonsense:x"), "urn"),
        (("map", "register", "urn:gurney:dir:no-command"), "no_command"),
        (("map", "register", "urn:gurney:dir:noop", "--label", "liver"), "'liver' is not KEY=VALUE"),
        (("map", "register", "urn:gurney:dir:noop", "--description", "/etc/nothing"), "/etc/nothing: No such file"),
        (("map", "register", "urn:gurney:dir:noop", "--description", "/etc/hostname"), "/etc/hostname is not JSON"),
        (("job", "show", "job_nothing"), "job_nothing"),
        (("job", "ls", "--state", "dreaming"), "state"),
        (("run", "urn:gurney:dir:shell"), "give files or folders"),
        (("run", "urn:gurney:dir:shell", "/etc/hostname", "-o", "/proc/nowhere"), "/proc/nowhere"),
        (("run", "urn:gurney:dir:shell", "/etc/hostname", "-o", "/proc"), "cannot write to /proc"),
        (("payload", "get", "nothing", "-o", "/tmp/x"), "nothing"),
        (("payload", "put", "nothing", "/no/such/path"), "/no/such/path"),
        (("whoami", "--url", "nonsense"), "nonsense is no URL"),
        (("whoami", "--url", "ftp://there"), "ftp://there is no URL"),
        (("up", "--port", "99999"), "port"),
        (("up", "--maps", "/no/such/folder"), "/no/such/folder"),
        (("up", "--data", "/etc/hostname"), "/etc/hostname: Not a directory"),
        (("token", "ls"), "administrator"),
    ],
    ids=str,
)
async def test_errors(gurney: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    """What goes wrong is told in one plain line on standard error, with an exit code that is not 0."""
    done = await gurney(*arguments, code=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("gurney: ")
    assert said in line
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--timeout=-1",), "timeout: "),
        (("--timeout", "nan"), "timeout: "),
        (("--timeout", "1e9"), "timeout: "),
        (("--name", "n" * 129), "name: "),
        (("--name", ""), "name: "),
        (("--priority", "now"), "priority: "),
        (("--memory", "much"), "memory: "),
        (("--label", "kind"), "label: "),
        (("--retries", "11"), "retries: "),
    ],
    ids=str,
)
async def test_options_are_checked_first(
    gurney: CommandLine, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    """`gurney run` tells an option that the API would refuse before it registers or uploads anything."""
    done = await gurney("run", "urn:gurney:dir:shell", folder(tmp_path, "true"), *options, code=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"gurney: {said}")
    assert (await gurney("map", "ls", "--json")).stdout == ""
    assert (await gurney("payload", "ls", "--json")).stdout == ""


@pytest.mark.slow
async def test_job_of_what_is_there(gurney: CommandLine, tmp_path: Path) -> None:
    """`gurney job create` submits what is on the server, with all that a job may be asked for."""
    await gurney("map", "register", "urn:gurney:dir:shell", "--name", "tool")
    payload = await gurney.json("payload", "create", "--name", "scan")
    await gurney("payload", "put", "scan", folder(tmp_path, "exit 3"))
    options = ("--label", "ward=3", "--label", "kind=ct", "--priority", "higher", "--retries", "1", "--timeout", "30")
    resources = ("--cpu", "0.5", "--memory", "64Mi", "--shared-memory", "32MiB")
    key = ("--idempotency-key", "first")
    made = await gurney.json("job", "create", "tool", "scan", *options, *resources, *key)
    assert (await gurney.json("job", "create", "tool", "scan", *options, *resources, *key))["id"] == made["id"]
    assert (made["payload"], made["labels"]) == (payload["id"], {"ward": "3", "kind": "ct"})
    assert (made["priority"], made["retries"], made["timeout_s"]) == ("higher", 1, 30)
    asked = made["resources"]
    assert (asked["cpu"], asked["memory"], asked["shared_memory"]) == (0.5, 64 << 20, 32 << 20)
    await gurney("job", "wait", made["id"], code=3)
    assert made["id"] in (await gurney("job", "ls", "--label", "ward=3", "--label", "kind=ct")).stdout
    assert (await gurney("job", "ls", "--label", "ward=4", "--json")).stdout == ""


@pytest.mark.slow
async def test_invalid_map_gets_no_upload(gurney: CommandLine) -> None:
    """`gurney run` with the name of a MAP that cannot run tells its reason, and uploads nothing."""
    await gurney("map", "register", "urn:gurney:dir:no-command", "--name", "broken", code=1)
    done = await gurney("run", "broken", "/etc/hostname", code=1)
    (line,) = done.stderr.splitlines()
    assert "no_command" in line
    assert (await gurney("payload", "ls", "--json")).stdout == ""


@pytest.mark.slow
async def test_usage(gurney: CommandLine) -> None:
    """What is no command, or lacks an argument, is told in one plain line, however narrow the terminal."""
    gurney.environment["COLUMNS"] = "40"
    for arguments in (("dream",), ("job", "show"), ("run", "m", "f", "--timeout", "[/x] soon")):
        (line,) = (await gurney(*arguments, code=2)).stderr.splitlines()
        assert line.startswith("gurney: ")


@pytest.mark.slow
async def test_nothing_is_left_out(gurney: CommandLine, tmp_path: Path) -> None:
    """Files that would take each other's place, no files, and names that no payload holds are told before an upload."""
    for folder_ in ("one", "two", "none"):
        (tmp_path / folder_).mkdir()
    for folder_ in ("one", "two"):
        (tmp_path / folder_ / "scan").write_text(folder_)
    done = await gurney("run", "urn:gurney:dir:shell", tmp_path / "one", tmp_path / "two", code=1)
    assert "would both be scan" in done.stderr
    done = await gurney("run", "urn:gurney:dir:shell", tmp_path / "none", code=1)
    assert "there are no files in" in done.stderr
    (tmp_path / "none" / "a\nscan").touch()
    done = await gurney("run", "urn:gurney:dir:shell", tmp_path / "one", tmp_path / "none", code=1)
    (line,) = done.stderr.splitlines()
    assert r"a\nscan" in line
    assert "control characters" in line
    assert (await gurney("payload", "ls", "--json")).stdout == ""


@pytest.mark.embedded
async def test_data_folder_of_the_environment(server: Server) -> None:
    """`gurney up` keeps its data where GURNEY_DATA says, as the other commands look for it there."""
    here = CommandLine(server, None)
    here.environment["GURNEY_DATA"] = str(server.data)
    done = await here("up", code=1)
    assert f"a server runs on {server.data} already" in done.stderr


@pytest.mark.slow
async def test_no_server(server: Server, tmp_path: Path) -> None:
    """Without a server, or without a token, one line says what helps."""
    nobody = CommandLine(server, None)
    del nobody.environment["GURNEY_URL"]
    done = await nobody("whoami", "--data", tmp_path, code=1)
    assert "gurney up" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    nobody.environment["GURNEY_URL"] = "http://127.0.0.1:9"
    done = await nobody("whoami", "--token", "x", code=1)
    assert "cannot reach http://127.0.0.1:9" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.embedded
async def test_data_folder(server: Server) -> None:
    """The data folder alone tells where the server is and lets its owner in."""
    here = CommandLine(server, None)
    del here.environment["GURNEY_URL"]
    assert (await here.json("whoami", "--data", server.data))["role"] == "administrator"


@pytest.mark.req("INF-07")
@pytest.mark.slow
async def test_maps(gurney: CommandLine) -> None:
    """MAPs are registered, named, listed, shown and removed."""
    made = await gurney.json("map", "register", "urn:gurney:dir:noop", "--label", "organ=liver")
    assert (made["state"], made["labels"]) == ("ready", {"organ": "liver"})
    await gurney("map", "name", made["id"], "liver")
    assert (await gurney.json("map", "show", "liver"))["id"] == made["id"]
    table = (await gurney("map", "ls")).stdout
    assert made["id"] in table
    assert f"{made['created_at'][:19]}Z" in table
    await gurney("map", "name", "liver")
    await gurney("map", "rm", made["id"])
    assert (await gurney("map", "ls", "--json")).stdout == ""
    broken = await gurney.json("map", "register", "urn:gurney:dir:no-command", code=1)
    assert (broken["state"], broken["reason"]["code"]) == ("invalid", "no_command")


async def test_described_map(gurney: CommandLine, tmp_path: Path) -> None:
    """A MAP without manifests is registered with a description from a file, and with why its containers need more."""
    said = tmp_path / "description.json"
    said.write_text('{"command": ["/bin/true"]}')
    options = ("--description", said, "--compatible", "writes beside itself", "--gpu-sharing")
    made = await gurney.json("map", "register", "urn:gurney:dir:no-manifest", *options)
    assert (made["state"], made["description"]["command"]) == ("ready", ["/bin/true"])
    assert made["hardening"] == {"mode": "compatible", "reason": "writes beside itself"}
    assert made["gpu_sharing"]


async def test_register_without_wait(gurney: CommandLine) -> None:
    """`gurney map register --no-wait` returns at once, whatever the manifests say."""
    made = await gurney.json("map", "register", "urn:gurney:dir:no-manifest", "--no-wait")
    assert made["state"] == "registering"


@pytest.mark.req("INF-07")
@pytest.mark.slow
async def test_payloads(gurney: CommandLine, tmp_path: Path) -> None:
    """Payloads are created, filled, listed, downloaded and removed."""
    source = folder(tmp_path, "true", scan="voxels")
    made = await gurney.json("payload", "create", "--name", "head")
    put = await gurney.json("payload", "put", "head", source)
    assert (put["id"], put["files"], put["uploaded"]) == (made["id"], 2, 2)
    assert len((await gurney("payload", "ls", "head", "--json")).stdout.splitlines()) == 2
    await gurney("payload", "get", "head", "-o", tmp_path / "copy")
    assert (tmp_path / "copy" / "scan").read_text() == "voxels"
    await gurney("payload", "rm", "head", "scan")
    for name in ("断" * 85, "a" * 249 + "1", "a" * 249 + "2"):
        (source / name).write_text(name)
    await gurney("payload", "put", "head", source)
    await gurney("payload", "get", "head", "-o", tmp_path / "long")
    assert {each.name for each in (tmp_path / "long").iterdir()} == {each.name for each in source.iterdir()}
    await gurney("payload", "rm", "head", *(each.name for each in source.iterdir() if each.name != "run.sh"))
    assert (await gurney.json("payload", "ls"))["files"] == 1
    await gurney("payload", "rm", "head")
    assert (await gurney("payload", "ls", "--json")).stdout == ""


@pytest.mark.req("INF-07")
@pytest.mark.slow
async def test_jobs(gurney: CommandLine, api: Api) -> None:
    """Jobs are listed, shown, followed, waited for, canceled, finalized and removed."""
    job = await work.begin(api, "echo one; sleep 0.3; exit 3")
    assert (await gurney("job", "logs", job["id"], "--follow")).stdout == "one\n"
    assert (await gurney.json("job", "wait", job["id"], code=3))["exit_code"] == 3
    assert (await gurney("job", "logs", job["id"])).stdout == "one\n"
    assert (await gurney.json("job", "show", job["id"]))["state"] == "failed"
    assert job["id"] in (await gurney("job", "ls", "--state", "failed")).stdout
    assert "started" in (await gurney("job", "story", job["id"])).stdout
    assert (await gurney.json("job", "finalize", job["id"]))["finalized_at"]
    await gurney("job", "rm", job["id"])
    assert (await gurney("job", "ls", "--json")).stdout == ""
    long = await work.begin(api, "sleep 60")
    await gurney("job", "cancel", long["id"])
    await gurney("job", "wait", long["id"], code=130)


@pytest.mark.req("INF-07")
@pytest.mark.slow
async def test_administration(gurney: CommandLine, server: Server, project: str) -> None:
    """Handlers, nodes, tokens and one's own name are there, too."""
    made = await gurney.json("handler", "create", "http://127.0.0.1:9/", "--event", "job.failed")
    assert made["secret"].startswith("whsec_")
    assert made["id"] in (await gurney("handler", "ls")).stdout
    assert (await gurney("handler", "deliveries", made["id"], "--json")).stdout == ""
    await gurney("handler", "rm", made["id"])
    node = await gurney.json("node", "ls")
    assert (await gurney.json("node", "show", node["id"]))["capacity"] == node["capacity"]
    owner = CommandLine(server, server.token)
    for verb, state in (("drain", "draining"), ("resume", "ready")):
        assert (await owner.json("node", verb, node["id"]))["state"] == state
    last = ("--expires-at", "2999-01-02")
    token = await owner.json("token", "create", "guest", "clinician", "--project", project, *last)
    assert token["expires_at"].startswith("2999-01-0")
    assert (await CommandLine(server, token["token"]).json("whoami"))["subject"] == "guest"
    assert token["id"] in (await owner("token", "ls")).stdout
    await owner("token", "rm", token["id"])
    await CommandLine(server, token["token"])("whoami", code=1)


async def test_blocking_client_inside_a_running_loop(api: Api, blocking: BlockBuster) -> None:
    """The blocking client does its work where a loop runs already, as in a notebook, and raises the API's errors."""
    blocking.functions["threading.Lock.acquire"].can_block_in("gurney/client/sync.py", {"run", "close"})  # its purpose
    made = await work.register(api, "shell")
    with Client(api.url, api.token) as gurney:  # this test's own loop runs around it
        data = gurney.payloads.create(name="notebook")
        script = b'echo hello; sleep 0.2; echo 1 > "$HOLOSCAN_OUTPUT_PATH/f"'
        gurney.payloads.write(data["id"], "run.sh", script)
        job = gurney.jobs.create(map=made["id"], payload="notebook")
        with pytest.raises(JobLive):
            gurney.jobs.delete(job["id"])
        assert "".join(gurney.jobs.logs(job["id"], follow=True)) == "hello\n"
        assert gurney.jobs.wait(job["id"])["state"] == "succeeded"
        assert gurney.jobs.result(job["id"], "f") == b"1\n"
        assert [each["id"] for each in gurney.jobs.list(payload="notebook")] == [job["id"]]
        with pytest.raises(NotFound):
            gurney.maps.get("nothing")
