"""Manifests of MAPs as real packagers write them, and what is wrong with broken ones."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.errors import Invalid, MapUnreadable
from gurney.model.common import Page
from gurney.model.map import Description, Map, MapState
from gurney.model.resources import Resources
from services.map import manifest
from services.map.urn import normalise

MAPS = Path(__file__).parents[1] / "maps"
GIB = 1024**3
HOLOSCAN_APP: dict[str, Any] = {
    "apiVersion": "1.0.0",
    "command": '["python3", "/opt/holoscan/app"]',
    "environment": {"HOLOSCAN_INPUT_PATH": "input/", "RETRIES": 3, "EMPTY": None},
    "input": {"path": "input/", "formats": None},
    "output": {"path": "output/", "formats": None},
    "timeout": 0,
    "version": 1.0,
    "workingDirectory": "/var/holoscan",
}
HOLOSCAN_PKG: dict[str, Any] = {
    "apiVersion": "1.0.0",
    "models": {"spleen_ct": "/opt/holoscan/models/spleen_ct"},
    "resources": {"cpu": 1, "gpu": 1, "memory": "1Gi", "gpu-memory": "10Gi"},
    "version": 0.1,
}
MONAI_APP: dict[str, Any] = {
    "api-version": "0.1.0",
    "command": "python3 -u /opt/monai/app/app.py",
    "environment": {},
    "input": {"formats": [], "path": "input"},
    "output": {"format": {}, "path": "output"},
    "timeout": "600",
    "working-directory": "/var/monai/",
}
MONAI_PKG: dict[str, Any] = {
    "api-version": "0.1.0",
    "models": [{"name": "model-54dd", "path": "/opt/monai/models/model/model.ts"}],
    "resources": {"cpu": 1, "gpu": 1, "memory": "7168Mi"},
}


def texts(app: Any, pkg: Any) -> dict[str, str]:
    return {"app.json": json.dumps(app), "pkg.json": json.dumps(pkg)}


def reason_of(app: Any, pkg: Any = HOLOSCAN_PKG) -> str:
    with pytest.raises(MapUnreadable) as fault:
        manifest.read(texts(app, pkg))
    return fault.value.reason


@pytest.mark.parametrize(
    ("name", "command", "models", "memory", "gpu_memory", "probes"),
    [
        ("monai-spleen", "-u /opt/monai/app/app.py", ["/opt/monai/models/model/model.ts"], 7 * GIB, None, 0),
        ("holoscan-simple", "/opt/holoscan/app", [], GIB, GIB, 0),
        (
            "holoscan-multi-model",
            "/opt/holoscan/app",
            ["/opt/holoscan/models/spleen_ct", "/opt/holoscan/models/pancreas_ct_dints"],
            GIB,
            10 * GIB,
            0,
        ),
        (
            "holoscan-mednist",
            "/opt/holoscan/app/mednist_classifier_monaideploy.py",
            ["/opt/holoscan/models/model"],
            GIB,
            GIB,
            0,
        ),
        (
            "holoscan-corner",
            "/opt/holoscan/app",
            ["/opt/holoscan/models/model-1", "/opt/holoscan/models/model-2"],
            GIB,
            GIB,
            2,
        ),
    ],
)
def test_manifests_of_the_field(  # noqa: PLR0917
    name: str, command: str, models: list[str], memory: int, gpu_memory: int | None, probes: int
) -> None:
    """What real packagers wrote is understood without a change, and kept as it is."""
    generation = name.partition("-")[0]
    found = {f"/etc/{generation}/{part}.json": (MAPS / name / f"{part}.json").read_text() for part in ("app", "pkg")}
    manifests, described = manifest.read(found)
    assert {each.path: each.content for each in manifests} == {path: json.loads(text) for path, text in found.items()}
    assert (described.generation, described.command) == (generation, ("python3", *command.split()))
    assert (described.input_path, described.output_path) == (f"/var/{generation}/input", f"/var/{generation}/output")
    assert str(described.working_directory).rstrip("/") == f"/var/{generation}"
    assert [model.path for model in described.models] == models
    assert described.resources == Resources(cpu=1, memory=memory, gpus=1, gpu_memory=gpu_memory)
    assert (described.timeout_s, len(described.probes)) == (None, probes)


def test_a_holoscan_package_is_understood() -> None:
    """Command, environment, absolute paths, models and resources in one unit system."""
    manifests, described = manifest.read(texts(HOLOSCAN_APP, HOLOSCAN_PKG))
    assert described.generation == "holoscan"
    assert described.command == ("python3", "/opt/holoscan/app")
    assert described.environment == {"HOLOSCAN_INPUT_PATH": "input/", "RETRIES": "3", "EMPTY": ""}
    assert (described.input_path, described.output_path) == ("/var/holoscan/input", "/var/holoscan/output")
    assert [(model.name, model.path) for model in described.models] == [("spleen_ct", "/opt/holoscan/models/spleen_ct")]
    assert (described.resources.memory, described.resources.gpu_memory) == (1024**3, 10 * 1024**3)
    assert described.timeout_s is None
    assert {each.path: each.content for each in manifests} == {"app.json": HOLOSCAN_APP, "pkg.json": HOLOSCAN_PKG}


def test_a_monai_package_is_understood() -> None:
    """Kebab-case keys, a shell line as the command, models as a list, a timeout in a text."""
    _, described = manifest.read(texts(MONAI_APP, MONAI_PKG))
    assert described.generation == "monai"
    assert described.command == ("python3", "-u", "/opt/monai/app/app.py")
    assert described.working_directory == "/var/monai/"
    assert (described.input_path, described.output_path) == ("/var/monai/input", "/var/monai/output")
    assert described.resources.memory == 7168 * 1024**2
    assert described.timeout_s == 600
    assert [model.name for model in described.models] == ["model-54dd"]


def test_the_folder_in_the_image_tells_the_generation() -> None:
    """What lies in /etc/monai is of the MONAI generation, whatever its keys look like."""
    found = {f"/etc/monai/{name}": text for name, text in texts(HOLOSCAN_APP, HOLOSCAN_PKG).items()}
    assert manifest.read(found)[1].generation == "monai"


@pytest.mark.parametrize(
    "line", ["cd /opt && python app.py > log", "OMP_NUM_THREADS=1 python app.py", "cd /opt\npython app.py"]
)
def test_a_line_that_needs_a_shell_gets_one(line: str) -> None:
    """Pipes, globs, variables and several lines are a shell's matter, as in the packager's own runner."""
    _, described = manifest.read(texts(MONAI_APP | {"command": line}, MONAI_PKG))
    assert described.command == ("/bin/sh", "-c", line)


def test_a_line_that_needs_no_shell_gets_none() -> None:
    """There may be none in the image."""
    _, described = manifest.read(texts(MONAI_APP | {"command": " python 'my app.py' --a=b\n"}, MONAI_PKG))
    assert described.command == ("python", "my app.py", "--a=b")


@pytest.mark.parametrize("command", [None, "", "  ", "[]", []])
def test_a_map_without_a_command_says_so(command: Any) -> None:
    """No command, in whatever spelling, is `no_command`."""
    assert reason_of(HOLOSCAN_APP | {"command": command}) == "no_command"


def test_broken_manifests_say_which() -> None:
    """Missing, unreadable, oversized and senseless manifests have reasons of their own."""
    with pytest.raises(MapUnreadable, match=r"no pkg\.json") as missing:
        manifest.read({"app.json": "{}"})
    assert missing.value.reason == "manifest_missing"
    with pytest.raises(MapUnreadable, match=r"app\.json is not JSON") as broken:
        manifest.read({"app.json": "{", "pkg.json": "{}"})
    assert broken.value.reason == "manifest_broken"
    assert reason_of([]) == "manifest_broken"
    assert reason_of(HOLOSCAN_APP | {"command": {"a": 1}}) == "manifest_broken"
    assert reason_of(HOLOSCAN_APP | {"command": '["a'}) == "manifest_broken"
    assert reason_of(HOLOSCAN_APP | {"environment": ["A=1"]}) == "manifest_broken"
    assert reason_of(HOLOSCAN_APP | {"x": "y" * 140_000}) == "manifest_too_large"


@pytest.mark.parametrize(
    "text",
    [
        '{"command": "a", "x": ' + "[" * 60_000 + "]" * 60_000 + "}",
        '{"command": "a", "x": ' + "[" * 220 + "]" * 220 + "}",
        '{"command": "' + "[" * 60_000 + '"}',
        r'{"command": "a", "x": "\ud800"}',
        r'{"command": "[\"\\ud800\"]"}',
        r'{"command": "a\u0000b"}',
        r'{"command": "a", "environment": {"A": "\u0000"}}',
    ],
    ids=["endless", "deep", "deep-command", "surrogate", "surrogate-in-command", "nul", "nul-in-environment"],
)
def test_what_no_document_or_process_can_have_is_refused(text: str) -> None:
    """What cannot be kept, or given to a process, is told at the registration, not as a fault of ours for ever."""
    with pytest.raises(MapUnreadable) as told:
        manifest.read({"app.json": text, "pkg.json": "{}"})
    assert told.value.reason == "manifest_broken"


def test_what_is_read_can_be_kept() -> None:
    """A manifest that nests as deep as it may lies in a document that is read again, and in a page of them."""
    deepest = "[" * (manifest.MAX_DEPTH - 2) + "]" * (manifest.MAX_DEPTH - 2)
    kept, described = manifest.read({"app.json": f'{{"command": "a", "x": {deepest}}}', "pkg.json": "{}"})
    document = Map(
        id="map_1",
        project="default",
        created_by="a",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        urn="urn:oci:a",
        state=MapState.READY,
        manifests=kept,
        description=described,
    )
    page = Page[Map](items=[document], next_cursor=None)
    assert Page[Map].decode(page.encode()) == page


@pytest.mark.parametrize("number", ["1" + "0" * 400, '"1' + "0" * 400 + 'Gi"', "1e999", '"9e999"', "NaN"])
def test_numbers_beyond_all_bounds_are_no_fault_of_ours(number: str) -> None:
    """A number that no machine has is as good as none, or as the most there is."""
    asked = ", ".join(f'"{name}": {number}' for name in ("cpu", "memory", "gpu", "gpuMemory", "sharedMemory"))
    pkg = f'{{"resources": {{{asked}}}}}'
    _, described = manifest.read({"app.json": f'{{"command": "a", "timeout": {number}}}', "pkg.json": pkg})
    assert described.timeout_s is None or described.timeout_s <= manifest.MAX_TIMEOUT_S
    assert Description.decode(described.encode()) == described


def test_relative_paths_are_so_to_the_working_directory() -> None:
    """As the packagers' own runners have it, where somebody packaged with another one."""
    paths = {"input": {"path": "in"}, "output": {"path": "/results/"}}
    _, described = manifest.read(texts(HOLOSCAN_APP | paths | {"workingDirectory": "/srv/app/"}, HOLOSCAN_PKG))
    assert (described.input_path, described.output_path) == ("/srv/app/in", "/results")
    _, described = manifest.read(texts(MONAI_APP | {"working-directory": "/srv/app"}, MONAI_PKG))
    assert (described.input_path, described.output_path) == ("/srv/app/input", "/srv/app/output")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1Gi", 1024**3), ("7168Mi", 7168 * 1024**2), ("0Mi", None), ("500MB", 500_000_000), ("1024", 1024), (64, 64)],
)
def test_sizes_in_all_spellings(text: Any, size: int | None) -> None:
    """Binary and decimal units, plain bytes, and zero for nothing."""
    assert manifest.size(text) == size


@given(
    st.dictionaries(
        st.sampled_from([*HOLOSCAN_APP, *MONAI_APP]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_any_json_is_read_or_refused_with_a_reason(app: dict[str, Any]) -> None:
    """Whatever a manifest holds, the answer is a description with a command or a named fault."""
    try:
        _, described = manifest.read(texts(app, HOLOSCAN_PKG))
    except MapUnreadable as fault:
        read_or_reason = fault.reason in {"no_command", "manifest_broken"}
    else:
        read_or_reason = bool(described.command)
    assert read_or_reason


@pytest.mark.parametrize(
    ("given_", "urn"),
    [
        ("urn:gurney:dir:ct-body", "urn:gurney:dir:ct-body"),
        ("URN:OCI:ghcr.io/a/b:1.0", "urn:oci:ghcr.io/a/b:1.0"),
        ("ghcr.io/a/b@sha256:" + "0" * 64, "urn:oci:ghcr.io/a/b@sha256:" + "0" * 64),
        ("localhost:5000/map", "urn:oci:localhost:5000/map"),
    ],
)
def test_urns_have_one_form(given_: str, urn: str) -> None:
    """A URN's namespace may be in any case, and a bare image reference becomes one."""
    assert normalise(given_) == urn
    assert normalise(urn) == urn


@pytest.mark.parametrize(
    "urn", ["", " ", "urn:", "urn:isbn:1", "urn:oci:", "urn:oci:UPPER/Case", "HUB/map:1", "urn:gurney:dir:../x", "a b"]
)
def test_what_is_no_urn_names_the_field(urn: str) -> None:
    """A malformed URN is an error of the field `urn`."""
    with pytest.raises(Invalid) as fault:
        normalise(urn)
    assert [each.field for each in fault.value.errors] == ["urn"]
