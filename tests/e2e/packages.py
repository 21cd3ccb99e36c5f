"""Images around the manifests of real packagers (`tests/maps`), laid out as they do it, each made in a second.

A shell stands for Python, and a script for the application: it notes what it was given and writes what the real one
writes. As in the field, the entrypoint of the image ends with 0 whatever the application does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gurney.runtime.docker.daemon import Client
from gurney.testing.docker import make_image

MAPS = Path(__file__).parents[1] / "maps"

#: Runs a script, or what a folder starts with.
PYTHON = """#!/bin/sh
[ "$1" = -u ] && shift
[ -d "$1" ] && set -- "$1/__main__.py"
exec sh "$1"
"""
NOTES = """
IN=${HOLOSCAN_INPUT_PATH:-$MONAI_INPUTPATH} OUT=${HOLOSCAN_OUTPUT_PATH:-$MONAI_OUTPUTPATH}
env; echo "uid=$(id -u)"; echo "folder=$(pwd)"; echo "input=$(ls "$IN")"
"""
DICOM = '{ head -c 128 /dev/zero; printf DICM; } > "$OUT/%s.dcm"'
#: What the SDK of the MONAI generation does before each operator of every application.
OPERATORS = 'set -e; mkdir -p "$MONAI_WORKDIR/operators/1-2/0/output"; cd "$MONAI_WORKDIR/operators/1-2/0/output"'
#: What an application may do that believes its environment.
LOGS = 'set -e; mkdir -p "$HOLOSCAN_LOGS_PATH"; echo began > "$HOLOSCAN_LOGS_PATH/app.log"'
_HOLOSCAN = {
    "INPUT_PATH": "/var/holoscan/input",
    "OUTPUT_PATH": "/var/holoscan/output",
    "WORKDIR": "/var/holoscan",
    "APPLICATION": "/opt/holoscan/app",
    "TIMEOUT": "0",
    "MODEL_PATH": "/opt/holoscan/models",
    "DOCS_PATH": "/opt/holoscan/docs",
    "CONFIG_PATH": "/var/holoscan/app.yaml",
    "APP_MANIFEST_PATH": "/etc/holoscan/app.json",
    "PKG_MANIFEST_PATH": "/etc/holoscan/pkg.json",
    "LOGS_PATH": "/var/holoscan/logs",
}
_MONAI = {
    "MONAI_INPUTPATH": "/var/monai/input",
    "MONAI_OUTPUTPATH": "/var/monai/output",
    "MONAI_WORKDIR": "/var/monai/",
    "MONAI_APPLICATION": "/opt/monai/app",
    "MONAI_TIMEOUT": "0",
    "MONAI_MODELPATH": "/opt/monai/models",
}


@dataclass(frozen=True)
class Package:
    """One MAP of the field."""

    #: The file that its command starts.
    application: str
    #: What the application does beside its notes.
    writes: str
    #: What is in its output then.
    results: frozenset[str]
    models: tuple[str, ...] = ()
    generation: str = "holoscan"

    @property
    def variables(self) -> dict[str, str]:
        """What the image sets."""
        if self.generation == "monai":
            return _MONAI
        return {f"HOLOSCAN_{name}": value for name, value in _HOLOSCAN.items()}

    @property
    def user(self) -> int:
        return 0 if self.generation == "monai" else 1000


PACKAGES = {
    "monai-spleen": Package(
        "/opt/monai/app/app.py",
        f"{OPERATORS}; {DICOM % '1.2.826.0.1.3680043.10.511.3.1'}",
        frozenset({"1.2.826.0.1.3680043.10.511.3.1.dcm"}),
        ("/opt/monai/models/model/model.ts",),
        "monai",
    ),
    "holoscan-simple": Package(
        "/opt/holoscan/app/__main__.py",
        r'printf "\211PNG\r\n\032\n" > "$OUT/final_output.png"',
        frozenset({"final_output.png"}),
    ),
    "holoscan-multi-model": Package(
        "/opt/holoscan/app/__main__.py",
        'for model in "$HOLOSCAN_MODEL_PATH"/*; do echo found > "$OUT/${model##*/}.txt"; done',
        frozenset({"spleen_ct.txt", "pancreas_ct_dints.txt"}),
        ("/opt/holoscan/models/spleen_ct/model.ts", "/opt/holoscan/models/pancreas_ct_dints/model.ts"),
    ),
    "holoscan-mednist": Package(
        "/opt/holoscan/app/mednist_classifier_monaideploy.py",
        f"""{LOGS}; echo '"Hand"' > "$OUT/output.json"; {DICOM % "1.2.826.0.1.3680043.10.511.3.2"}""",
        frozenset({"output.json", "1.2.826.0.1.3680043.10.511.3.2.dcm"}),
        ("/opt/holoscan/models/model/model.ts",),
    ),
    "holoscan-corner": Package("/opt/holoscan/app/__main__.py", "echo shown=all", frozenset()),
}


def manifest(name: str, part: str) -> str:
    """Return the text of `app` or `pkg` of a package."""
    return (MAPS / name / f"{part}.json").read_text("utf-8")


def make(
    client: Client,
    name: str,
    image: str = "",
    *,
    writes: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Make a package's image and return its reference.

    What is given replaces what the application writes, and what the image sets, in an image of another name.
    """
    package = PACKAGES[name]
    generation = package.generation
    entrypoint = "/opt/monai/executor/monai-exec" if generation == "monai" else "/var/holoscan/tools"
    files: dict[str, str | bytes] = {
        **{f"etc/{generation}/{part}.json": manifest(name, part) for part in ("app", "pkg")},
        "*usr/bin/python3": PYTHON,
        f"*{entrypoint}": f"#!/bin/sh\npython3 {package.application}\nexit 0\n",
        package.application: NOTES + (package.writes if writes is None else writes),
        **dict.fromkeys(package.models, "weights"),
    }
    given = package.variables if variables is None else variables
    changes = [f"ENV {key}={value}" for key, value in given.items()]
    changes += [f'ENTRYPOINT ["{entrypoint}"]', f"WORKDIR /var/{generation}"]
    changes += [f"USER {package.user}:{package.user}"] if package.user else []
    reference = image or f"e2e-{name}:1"
    make_image(client, reference, files, changes)
    return reference
