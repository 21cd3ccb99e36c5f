"""The environment of a run: the manifest's variables, then the paths of this run over them.

Real manifests carry relative paths (`HOLOSCAN_INPUT_PATH=input/`), so the absolute ones win whatever the manifest says.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gurney.runtime.port import RunSpec

#: What a process inherits of the server's environment. Nothing else: the rest may be secret.
INHERITED = ("HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
#: Thread pools that would otherwise take as many threads as the host has processors.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the run finds its things, as the application sees them: absolute paths."""

    input: str
    output: str
    #: The application's folder.
    work: str
    #: What the MAP brings along in a payload; None: nothing.
    content: str | None = None


#: Where the packagers put things in an image, by generation. Nobody knows that of an image that somebody described.
_IMAGE_DEFAULTS = {
    "holoscan": {
        "HOLOSCAN_APPLICATION": "/opt/holoscan/app",
        "HOLOSCAN_MODEL_PATH": "/opt/holoscan/models",
        "HOLOSCAN_DOCS_PATH": "/opt/holoscan/docs",
        "HOLOSCAN_CONFIG_PATH": "/var/holoscan/app.yaml",
        "HOLOSCAN_APP_MANIFEST_PATH": "/etc/holoscan/app.json",
        "HOLOSCAN_PKG_MANIFEST_PATH": "/etc/holoscan/pkg.json",
        "HOLOSCAN_LOGS_PATH": "/var/holoscan/logs",
    },
    "monai": {"MONAI_APPLICATION": "/opt/monai/app", "MONAI_MODELPATH": "/opt/monai/models"},
}


def generation_variables(generation: str, places: Places, timeout: str) -> dict[str, str]:
    """Return paths and timeout under the names of the generation; `supplied` gets both sets."""
    holoscan = {
        "HOLOSCAN_INPUT_PATH": places.input,
        "HOLOSCAN_OUTPUT_PATH": places.output,
        "HOLOSCAN_WORKDIR": places.work,
        "HOLOSCAN_TIMEOUT": timeout,
    }
    monai = {
        "MONAI_INPUTPATH": places.input,
        "MONAI_OUTPUTPATH": places.output,
        "MONAI_WORKDIR": places.work,
    }
    return {"holoscan": holoscan, "monai": monai}.get(generation, holoscan | monai)


def run_variables(spec: RunSpec, places: Places) -> dict[str, str]:
    """Return what every runtime sets, over the manifest's environment."""
    timeout = str(math.ceil(spec.timeout_s or 0))
    return {
        **spec.environment,
        **generation_variables(spec.generation, places, timeout),
        "MONAI_JOBID": spec.job_id,
        "MONAI_TIMEOUT": timeout,
        **spec.extra_environment,
        "GURNEY_RUN_ID": spec.run_id,
        "GURNEY_JOB_ID": spec.job_id,
        "GURNEY_ATTEMPT": str(spec.attempt),
        **({"GURNEY_CONTENT_PATH": places.content} if places.content else {}),
    }


def image_defaults(generation: str, set_by_image: Collection[str]) -> dict[str, str]:
    """Return what both image and manifest may leave unsaid; what the image's own environment sets is left to it."""
    defaults = _IMAGE_DEFAULTS.get(generation, {})
    return {name: path for name, path in defaults.items() if name not in set_by_image}


def folder_defaults(generation: str, folder: str) -> dict[str, str]:
    """Return where a folder MAP has what an image has under /etc and /opt, unless its manifest says otherwise."""
    holoscan = {
        "HOLOSCAN_APPLICATION": folder,
        "HOLOSCAN_MODEL_PATH": f"{folder}/models",
        "HOLOSCAN_APP_MANIFEST_PATH": f"{folder}/app.json",
        "HOLOSCAN_PKG_MANIFEST_PATH": f"{folder}/pkg.json",
    }
    monai = {"MONAI_APPLICATION": folder, "MONAI_MODELPATH": f"{folder}/models"}
    return {"holoscan": holoscan, "monai": monai}.get(generation, holoscan | monai)


def process_environment(
    spec: RunSpec, *, folder: str, python_dir: str, tmp: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the whole environment of a run of the process runtime.

    `folder` is the MAP's copy, `python_dir` the folder of the server's Python, `inherited` the server's environment.
    """
    threads = str(max(1, math.ceil(spec.cpu)))
    content = None if spec.content_dir is None else str(spec.content_dir)
    given = run_variables(spec, Places(str(spec.input_dir), str(spec.output_dir), folder, content))
    path = given.get("PATH") or inherited.get("PATH") or _DEFAULT_PATH
    return {
        **{name: inherited[name] for name in INHERITED if name in inherited},
        **dict.fromkeys(THREAD_VARIABLES, threads),
        "PYTHONUNBUFFERED": "1",  # the log is followed live
        "PYTHONDONTWRITEBYTECODE": "1",  # the copy of the MAP stays as it was pinned, also where root may write
        **folder_defaults(spec.generation, folder),
        **given,
        "PATH": f"{python_dir}:{path}",
        "TMPDIR": tmp,
        "CUDA_VISIBLE_DEVICES": ",".join(spec.gpus),
    }
