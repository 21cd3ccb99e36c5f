"""What the Docker runtime decides without a daemon."""

import struct
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.errors import Invalid
from gurney.runtime.docker import ending, groups, images, users
from gurney.runtime.docker.container import Image, Means, config, environment
from gurney.runtime.docker.export import HOLOSCAN, MONAI, Way, way_of
from gurney.runtime.docker.house import House
from gurney.runtime.docker.logs import Frames
from gurney.runtime.docker.pause import program
from gurney.runtime.docker.reference import parse
from gurney.runtime.docker.shares import Owner
from gurney.runtime.port import Cause, RunSpec

DIGEST = f"sha256:{'a' * 64}"
IMAGE = Image("sha256:1", "app", 1000, 1001, "/opt/app")
MEANS = Means("container:pause1", 2.0, None, {"gurney.node": "n1"})
SPEC = RunSpec(
    run_id="job_1-1",
    job_id="job_1",
    attempt=1,
    node="n1",
    urn="urn:oci:app:1",
    digest=DIGEST,
    generation="holoscan",
    command=("python", "app.py"),
    environment={},
    working_directory=None,
    input_path="/var/holoscan/input",
    output_path="/var/holoscan/output",
    input_dir=Path("/data/in"),
    output_dir=Path("/data/out"),
    cpu=1.0,
    memory=1 << 30,
)


@pytest.mark.parametrize(
    ("text", "name", "tag", "digest", "registry"),
    [
        ("app", "app", None, None, False),
        ("team/app:1.2", "team/app", "1.2", None, False),
        ("localhost/app", "localhost/app", None, None, True),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b", "1", None, True),
        ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b", None, None, True),
        (f"nvcr.io/a:1@{DIGEST}", "nvcr.io/a", "1", DIGEST, True),
        (f"app@{DIGEST}", "app", None, DIGEST, False),
    ],
)
def test_references(text: str, name: str, tag: str | None, digest: str | None, registry: bool) -> None:  # noqa: FBT001
    """A reference falls into name, tag and digest, ports and registries told from tags and folders."""
    found = parse(f"urn:oci:{text}")
    assert (found.name, found.tag, found.digest, found.names_registry) == (name, tag, digest, registry)
    assert str(found) == text
    assert found.at(DIGEST).local == f"{name}@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("docker.io/library/app:1", "app"),
        ("index.docker.io/team/app", "team/app"),
        ("library/app", "app"),
        ("app", "app"),
        ("registry.example/library/app:1", "registry.example/library/app"),
    ],
)
def test_how_the_daemon_lists_images(text: str, listed: str) -> None:
    """Docker's own registry has no name in the lists of the daemon, and its official images no folder."""
    assert parse(f"urn:oci:{text}").at(DIGEST).listed == f"{listed}@{DIGEST}"


@pytest.mark.parametrize(
    ("names", "pinned", "pins"),
    [
        (["r/app:1", "r/app:2"], ["r/app@sha256:a"], ["sha256:a"]),
        (["r/app:1"], ["r/app@sha256:a", "r/app@sha256:b"], ["sha256:a", "sha256:b"]),
        ([], ["r/app@sha256:a"], ["sha256:a"]),
        (["r/app:1", "mine:1"], ["r/app@sha256:a"], ["sha256:a", "sha256:id"]),
        (["127.0.0.1:5000/mine:1"], None, ["sha256:id"]),
        (None, None, ["sha256:id"]),
    ],
)
def test_by_what_an_image_may_be_pinned(names: list[str] | None, pinned: list[str] | None, pins: list[str]) -> None:
    """By what registries call it, and by its id where a name of it was in none."""
    assert images.pins({"Id": "sha256:id", "RepoTags": names, "RepoDigests": pinned}) == pins


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        (["PATH=/bin", "HOLOSCAN_TIMEOUT=0"], HOLOSCAN),
        (["MONAI_TIMEOUT=0"], MONAI),
        (["MONAI_TIMEOUT=0", "HOLOSCAN_TIMEOUT=0"], HOLOSCAN),
        (["PATH=/opt/MONAI_1", "XMONAI_X=1", "monai_x=1"], None),
        ([], None),
    ],
)
def test_how_an_image_exports(environment: list[str], way: Way | None) -> None:
    """The variables of an image tell its generation, the newer one first; others tell nothing."""
    assert way_of(environment) == way


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=20),
    st.lists(st.integers(1, 30), min_size=1),
)
def test_frames(said: list[tuple[int, bytes]], sizes: list[int]) -> None:
    """However the stream of frames is cut, what was said comes out, in order."""
    stream = b"".join(struct.pack(">BxxxL", kind, len(text)) + text for kind, text in said)
    frames, heard, at = Frames(), b"", 0
    while at < len(stream):
        size = sizes[at % len(sizes)]
        heard += frames.texts(stream[at : at + size])
        at += size
    assert heard == b"".join(text for _, text in said)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0)),
        ("root", (0, 0)),
        ("1000", (1000, 0)),
        ("1000:50", (1000, 50)),
        ("app", (7, 8)),
        ("app:staff", (7, 50)),
        ("1000:staff", (1000, 50)),
        ("nobody-knows", (0, 0)),
        ("4294967294:4294967295", (4294967294, 0)),
        ("9" * 5000, (0, 0)),
        ("liar", (0, 0)),
    ],
)
def test_users(user: str, expected: tuple[int, int]) -> None:
    """A user is a number, or a name that the image's own files know."""
    files = {
        "/etc/passwd": b"# broken:\nroot:x:0:0::/root:/bin/sh\napp:x:7:8::/home/app:/bin/sh\nliar:x:"
        + b"9" * 5000
        + b":8::/:\n",
        "/etc/group": b"root:x:0:\nstaff:x:50:app\n",
    }
    assert users.ids(user, files.get) == expected
    assert users.is_named(user) == any(part not in {"", "root"} and not part.isdecimal() for part in user.split(":"))


def test_root_gives_the_output_away_and_others_run_as_they_are() -> None:
    """Root lets the image have its user; somebody else has the container run as himself, else he could not clear up."""
    assert Owner(0, 0).of(IMAGE) == (1000, 1001, None)
    assert Owner(5, 6).of(IMAGE) == (5, 6, "5:6")


@pytest.mark.parametrize(
    ("input_path", "output_path"),
    [
        ("input", "/out"),
        ("/", "/out"),
        ("/opt", "/out"),
        ("/opt/app", "/out"),
        ("/in", "/opt/app/."),
        ("/data", "/data"),
        ("/data", "/data/out"),
        ("/data/in", "/data"),
    ],
)
def test_mounts_that_would_hide_something(input_path: str, output_path: str) -> None:
    """Paths that are not absolute, hide the application's folder, or each other, are refused."""
    with pytest.raises(Invalid):
        config(replace(SPEC, input_path=input_path, output_path=output_path), IMAGE, MEANS)


def test_limits_stay_within_what_the_daemon_takes() -> None:
    """No more cores than the host has, no less memory than a container needs, and no swap."""
    host = config(replace(SPEC, cpu=64.0, memory=1), IMAGE, MEANS)["HostConfig"]
    assert host["NanoCpus"] == 2_000_000_000
    assert host["Memory"] == host["MemorySwap"] > 1
    assert config(replace(SPEC, memory=0), IMAGE, MEANS)["HostConfig"]["Memory"] == 0


def test_a_run_is_closed_in_unless_its_map_needs_more() -> None:
    """Strict: nothing of the image may be written, no capability, no network; compatible gives what a MAP asked for."""
    strict = config(SPEC, IMAGE, MEANS)["HostConfig"]
    assert (strict["ReadonlyRootfs"], strict["CapDrop"], strict["NetworkMode"]) == (True, ["ALL"], "container:pause1")
    compatible = config(replace(SPEC, hardening="compatible"), IMAGE, replace(MEANS, network="n1"))["HostConfig"]
    assert (compatible["ReadonlyRootfs"], compatible["NetworkMode"]) == (False, "n1")
    assert "NET_RAW" in compatible["CapDrop"]
    assert "ALL" not in compatible["CapDrop"]
    assert compatible["SecurityOpt"] == strict["SecurityOpt"]


def test_folders_in_memory() -> None:
    """A run may write to /tmp, and where its generation has logs, or the folders of operators; not over a mount."""
    supplied = replace(SPEC, generation="supplied")
    assert set(config(supplied, IMAGE, MEANS)["HostConfig"]["Tmpfs"]) == {"/tmp"}
    assert config(replace(supplied, output_path="/tmp/"), IMAGE, MEANS)["HostConfig"]["Tmpfs"] == {}
    assert set(config(SPEC, IMAGE, MEANS)["HostConfig"]["Tmpfs"]) == {"/tmp", "/var/holoscan/logs"}
    monai = replace(SPEC, generation="monai", working_directory="/var/monai/")
    assert set(config(monai, IMAGE, MEANS)["HostConfig"]["Tmpfs"]) == {"/tmp", "/var/monai/operators"}


def test_gpus() -> None:
    """A run gets the placed GPUs by UUID, and none otherwise, whatever the image asks for."""
    assert "DeviceRequests" not in config(SPEC, IMAGE, MEANS)["HostConfig"]
    assert environment(SPEC, IMAGE)["NVIDIA_VISIBLE_DEVICES"] == "void"
    placed = replace(SPEC, gpus=("GPU-a", "GPU-b"))
    assert config(placed, IMAGE, MEANS)["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == ["GPU-a", "GPU-b"]
    assert environment(placed, IMAGE)["NVIDIA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_gpus_on_paper() -> None:
    """Of GPUs that are not there a run is told the names, and the daemon is asked for no device."""
    placed = replace(SPEC, gpus=("GPU-a", "GPU-b"), gpus_simulated=True)
    assert "DeviceRequests" not in config(placed, IMAGE, MEANS)["HostConfig"]
    given = environment(placed, IMAGE)
    assert (given["CUDA_VISIBLE_DEVICES"], given["NVIDIA_VISIBLE_DEVICES"]) == ("GPU-a,GPU-b", "void")


def test_what_the_packagers_always_set() -> None:
    """Each generation gets its own names; what the image sets itself is left to it, and the manifest wins over both."""
    holoscan, monai = environment(SPEC, IMAGE), environment(replace(SPEC, generation="monai"), IMAGE)
    assert {name.partition("_")[0] for name in monai} & {"HOLOSCAN", "MONAI"} == {"MONAI"}
    assert (monai["MONAI_APPLICATION"], monai["MONAI_MODELPATH"]) == ("/opt/monai/app", "/opt/monai/models")
    assert {name.removeprefix("HOLOSCAN_") for name in holoscan if name.startswith("HOLOSCAN_")} == {
        *("INPUT_PATH", "OUTPUT_PATH", "WORKDIR", "APPLICATION", "TIMEOUT", "MODEL_PATH", "DOCS_PATH", "CONFIG_PATH"),
        *("APP_MANIFEST_PATH", "PKG_MANIFEST_PATH", "LOGS_PATH"),
    }
    own = replace(IMAGE, variables=frozenset({"HOLOSCAN_MODEL_PATH", "HOLOSCAN_LOGS_PATH", "HOLOSCAN_INPUT_PATH"}))
    given = environment(replace(SPEC, environment={"HOLOSCAN_LOGS_PATH": "/logs"}), own)
    assert "HOLOSCAN_MODEL_PATH" not in given
    assert (given["HOLOSCAN_LOGS_PATH"], given["HOLOSCAN_INPUT_PATH"]) == ("/logs", "/var/holoscan/input")
    assert "HOLOSCAN_MODEL_PATH" not in environment(replace(SPEC, generation="supplied"), IMAGE)


def test_working_directory() -> None:
    """The application's folder is the manifest's, else the image's, else that of its generation."""
    assert environment(replace(SPEC, working_directory="/w"), IMAGE)["HOLOSCAN_WORKDIR"] == "/w"
    assert environment(SPEC, IMAGE)["HOLOSCAN_WORKDIR"] == "/opt/app"
    assert environment(SPEC, replace(IMAGE, working_directory=""))["HOLOSCAN_WORKDIR"] == "/var/holoscan"


BEGAN, STOPPED = (datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for second in (1, 3))
RAN = ending.State(0, oom_killed=False, started_at=BEGAN, stopped_at=STOPPED)


@pytest.mark.parametrize(
    ("state", "asked", "doubt", "cause", "code"),
    [
        (RAN, None, "", Cause.EXITED, 0),
        (replace(RAN, exit_code=137), None, "", Cause.EXITED, 137),
        (replace(RAN, exit_code=137, oom_killed=True), None, "", Cause.MEMORY, 137),
        (replace(RAN, exit_code=143), Cause.STOPPED, "", Cause.STOPPED, 143),
        (replace(RAN, exit_code=143), None, "taken down", Cause.LOST, None),
        (RAN, None, "not seen", Cause.LOST, None),
        (replace(RAN, started_at=None, exit_code=127, error="not found"), None, "", Cause.EXITED, 127),
        (replace(RAN, started_at=None, exit_code=128, error="no device"), None, "", Cause.NOT_STARTED, None),
    ],
)
def test_ends(state: ending.State, asked: Cause | None, doubt: str, cause: Cause, code: int | None) -> None:
    """The cause is why we ended it, else the daemon's flag, else the exit; an end in doubt is lost."""
    end = ending.end_of(state, asked, doubt=doubt)
    assert (end.cause, end.exit_code) == (cause, code)


def test_clock_that_goes_back() -> None:
    """A stop that the daemon dates before the start counts as at the start."""
    end = ending.end_of(replace(RAN, stopped_at=BEGAN, started_at=STOPPED), None)
    assert (end.stopped_at, end.duration_s) == (STOPPED, 0.0)


def test_times_of_the_daemon() -> None:
    """Nanoseconds are cut, missing fractions and the year 1 understood."""
    assert ending.moment("2026-01-01T00:00:01.123456789Z") == datetime(2026, 1, 1, 0, 0, 1, 123456, tzinfo=UTC)
    assert ending.moment("2026-01-01T00:00:01Z") == BEGAN
    assert ending.moment("0001-01-01T00:00:00Z") is None
    assert ending.moment("") is None


def test_houses_are_told_apart() -> None:
    """The same node over the same folder is the same house; any other is another."""
    here = House("n1", Path("/a"))
    assert here.id == House("n1", Path("/a")).id
    assert len({here.id, House("n2", Path("/a")).id, House("n1", Path("/b")).id}) == 3
    assert here.owns(here.labels)
    assert not here.owns(None)


def test_memory_without_the_cache() -> None:
    """What processes hold is told from the cache of files, in both versions of control groups."""
    assert groups.resident({"total_rss": 5, "cache": 4}) == 5
    assert groups.resident({"anon": 5, "shmem": 1, "file": 3}) == 6
    assert groups.resident({}) is None


def test_use_as_the_daemon_tells_it() -> None:
    """Nanoseconds become seconds; what the daemon does not tell is not made up."""
    stats = {"cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}}, "memory_stats": {"stats": {"anon": 5}}}
    assert groups.told(stats) == groups.Used(1.5, 5)
    assert groups.told({"cpu_stats": {}, "memory_stats": {}}) == groups.Used(None, None)


@pytest.mark.parametrize("folder", ["docker/c1", "system.slice/docker-c1.scope"])
@pytest.mark.parametrize("version", [1, 2])
def test_use_as_control_groups_tell_it(tmp_path: Path, folder: str, version: int) -> None:
    """Files of both versions are read, wherever the daemon's driver has put them; of what is gone there is nothing."""
    if version == 1:
        texts = {f"cpuacct/{folder}/cpuacct.usage": "1500000000\n", f"memory/{folder}/memory.stat": "total_rss 5\n"}
    else:
        texts = {f"{folder}/cpu.stat": "usage_usec 1500000\n", f"{folder}/memory.stat": "anon 4\nshmem 1\n"}
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert groups.read("c1", tmp_path) == groups.Used(1.5, 5)
    assert groups.read("c2", tmp_path) is None


def test_program_that_waits() -> None:
    """There is a program for both usual processors, as small as can be, and none for what nobody has written it for."""
    for architecture, machine in (("amd64", 62), ("arm64", 183)):
        made = program(architecture)
        assert made is not None
        assert made[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", made, 18) == (machine,)
        assert len(made) < 200
    assert program("s390x") is None
