"""The environment of a run, as a pure function."""

from dataclasses import replace
from pathlib import Path

import pytest

from gurney.runtime.environment import process_environment
from gurney.runtime.port import RunSpec

SPEC = RunSpec(
    run_id="job_1-2",
    job_id="job_1",
    attempt=2,
    node="n1",
    urn="urn:gurney:dir:app",
    digest="sha256:00",
    generation="holoscan",
    command=("python3", "app.py"),
    environment={"HOLOSCAN_INPUT_PATH": "input/", "HOLOSCAN_OUTPUT_PATH": "output/", "HOLOSCAN_MODEL_PATH": "weights"},
    working_directory="/var/holoscan",
    input_path="input/",
    output_path="output/",
    input_dir=Path("/data/in"),
    output_dir=Path("/data/out"),
    cpu=2.5,
    memory=1,
)
SERVER = {"PATH": "/usr/bin", "HOME": "/home/me", "LANG": "C.UTF-8", "GURNEY_S3_SECRET_KEY": "secret"}


def environment(spec: RunSpec) -> dict[str, str]:
    return process_environment(spec, folder="/maps/app", python_dir="/venv/bin", tmp="/run/tmp", inherited=SERVER)


def test_absolute_paths_win_over_the_manifest() -> None:
    """The manifest's relative paths are replaced; what only the manifest knows stays."""
    given = environment(SPEC)
    assert given["HOLOSCAN_INPUT_PATH"] == "/data/in"
    assert given["HOLOSCAN_OUTPUT_PATH"] == "/data/out"
    assert given["HOLOSCAN_WORKDIR"] == "/maps/app"
    assert given["HOLOSCAN_MODEL_PATH"] == "weights"


@pytest.mark.parametrize(
    ("generation", "names"),
    [
        ("holoscan", {"HOLOSCAN_INPUT_PATH"}),
        ("monai", {"MONAI_INPUTPATH"}),
        ("supplied", {"HOLOSCAN_INPUT_PATH", "MONAI_INPUTPATH"}),
    ],
)
def test_names_follow_the_generation(generation: str, names: set[str]) -> None:
    """Each generation gets its own variables, a supplied description both."""
    given = environment(replace(SPEC, generation=generation, environment={}))
    assert {"HOLOSCAN_INPUT_PATH", "MONAI_INPUTPATH"} & set(given) == names
    assert {given[name] for name in names} == {"/data/in"}


def test_who_the_run_is() -> None:
    """Job, attempt and run are told, and neither manifest nor extras can lie about them."""
    liar = {"GURNEY_RUN_ID": "other", "MONAI_JOBID": "other"}
    given = environment(
        replace(SPEC, environment=liar, extra_environment={"GURNEY_JOB_ID": "other", "TRACEPARENT": "t"})
    )
    assert (given["GURNEY_RUN_ID"], given["GURNEY_JOB_ID"], given["GURNEY_ATTEMPT"]) == ("job_1-2", "job_1", "2")
    assert (given["MONAI_JOBID"], given["TRACEPARENT"]) == ("job_1", "t")


@pytest.mark.parametrize(("timeout_s", "told"), [(None, "0"), (60.0, "60"), (0.5, "1")])
def test_timeout_is_told_in_whole_seconds(timeout_s: float | None, told: str) -> None:
    """The timeout is a whole number, zero where there is none, never zero where there is one."""
    given = environment(replace(SPEC, timeout_s=timeout_s))
    assert (given["MONAI_TIMEOUT"], given["HOLOSCAN_TIMEOUT"]) == (told, told)


def test_only_harmless_variables_are_inherited() -> None:
    """Of the server's environment a run gets home, language and the like, not its secrets."""
    given = environment(SPEC)
    assert (given["HOME"], given["LANG"]) == ("/home/me", "C.UTF-8")
    assert "secret" not in given.values()


@pytest.mark.parametrize(("path", "told"), [(None, "/venv/bin:/usr/bin"), ("/opt/bin", "/venv/bin:/opt/bin")])
def test_python_of_the_server_comes_first(path: str | None, told: str) -> None:
    """Whatever PATH the manifest sets, the server's Python is found first."""
    assert environment(replace(SPEC, environment={"PATH": path} if path else {}))["PATH"] == told


@pytest.mark.parametrize(("cpu", "threads"), [(0.5, "1"), (1.0, "1"), (2.5, "3")])
def test_thread_pools_follow_the_cpu(cpu: float, threads: str) -> None:
    """Thread pools are as large as the placed processors, rounded up."""
    given = environment(replace(SPEC, cpu=cpu))
    assert {given[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {threads}


def test_manifest_may_size_its_thread_pools() -> None:
    """A thread count that the manifest sets is kept."""
    assert environment(replace(SPEC, environment={"OMP_NUM_THREADS": "7"}))["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(("gpus", "visible"), [((), ""), (("GPU-1", "GPU-2"), "GPU-1,GPU-2")])
def test_only_placed_gpus_are_visible(gpus: tuple[str, ...], visible: str) -> None:
    """The placed GPUs are named by UUID, and a manifest cannot make others visible."""
    spec = replace(SPEC, gpus=gpus, environment={"CUDA_VISIBLE_DEVICES": "0"}, extra_environment={"TMPDIR": "/x"})
    given = environment(spec)
    assert (given["CUDA_VISIBLE_DEVICES"], given["TMPDIR"]) == (visible, "/run/tmp")
