"""What set-up says and does on machines that lack something."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.plugins.servers import PROBES

ROOT = Path(__file__).parents[2]


class Machine:
    """A PATH with no more than a shell's needs and the programs that a test puts there."""

    def __init__(self, folder: Path) -> None:
        """Begin with a clone that has the scripts, and a PATH without any Python."""
        self.clone = folder / "a clone"
        self.bin = folder / "bin"
        (self.clone / "scripts").mkdir(parents=True)
        (self.clone / "scripts" / "lib.sh").write_text((ROOT / "scripts" / "lib.sh").read_text())
        self.bin.mkdir()
        for tool in ("bash", "dirname", "id", "cat"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def program(self, name: str, script: str) -> None:
        """Put a program on PATH."""
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def run(self, command: str, **environment: str) -> tuple[int, str, str]:
        """Run a command of lib.sh from another folder; return its exit code, output and complaints."""
        script = f'. "{self.clone}/scripts/lib.sh"; {command}'
        told = subprocess.run(
            ["bash", "-euc", script],
            cwd="/",
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return told.returncode, told.stdout, told.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that has nothing."""
    return Machine(tmp_path)


def test_machine_without_python_hears_the_command(machine: Machine) -> None:
    """Where there is no Python, the one line that is said ends with a command of this machine's package manager."""
    machine.program("apt-get", "exit 0")
    machine.program("apt-cache", '[ "$2" = python3.12-venv ]')
    code, _, told = machine.run("choose_python")
    assert code == 1
    assert len(told.splitlines()) == 1
    assert told.endswith("apt-get install python3.12-venv\n")


def test_old_python_is_passed_over(machine: Machine) -> None:
    """A Python that is too old counts as none, and a fitting one of another name is taken."""
    machine.program("python3", "exit 1")
    code, _, told = machine.run("choose_python")
    assert code == 1
    assert "needs Python 3.11, 3.12 or 3.13" in told
    machine.program("python3.12", f'exec "{sys.executable}" "$@"')
    assert machine.run("choose_python") == (0, "python3.12", "")


def test_python_without_venv_hears_the_command(machine: Machine) -> None:
    """A Python without the venv module is told apart from none, with the package of just that Python."""
    machine.program("apt-get", "exit 0")
    machine.program("apt-cache", "exit 0")
    machine.program("python3", f'case "$2" in *ensurepip*) exit 1;; esac; exec "{sys.executable}" "$@"')
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    code, _, told = machine.run("choose_python")
    assert code == 1
    assert told.startswith("python3 has no venv module. This helps: ")
    assert told.endswith(f"apt-get install python{version}-venv\n")


def test_python_that_was_asked_for_is_not_replaced(machine: Machine) -> None:
    """`GURNEY_PYTHON` decides: when it does not fit, no other Python is taken in silence."""
    machine.program("python3", f'exec "{sys.executable}" "$@"')
    assert machine.run("choose_python", GURNEY_PYTHON=sys.executable) == (0, sys.executable, "")
    code, _, told = machine.run("choose_python", GURNEY_PYTHON="/nowhere/python")
    assert code == 1
    assert "GURNEY_PYTHON=/nowhere/python" in told


def test_environment_is_kept_while_nothing_changes(machine: Machine) -> None:
    """With matching stamps set-up installs nothing and needs no network; a changed lock or project is noticed."""
    (machine.clone / ".venv" / "bin").mkdir(parents=True)
    python = machine.clone / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name in ("requirements.lock", "pyproject.toml"):
        (machine.clone / name).write_text("one")
    stamps = (
        "stamp .venv/bin/python requirements.lock >.venv/stamp.lock;"
        "stamp .venv/bin/python requirements.lock pyproject.toml >.venv/stamp.project;"
    )
    spies = "install_locked() { echo locked; }; pip_install() { echo project; };"
    assert machine.run(f"{stamps} {spies} setup") == (0, "", "")
    (machine.clone / "pyproject.toml").write_text("two")
    assert machine.run(f"{spies} setup; setup") == (0, "project\n", "")
    (machine.clone / "requirements.lock").write_text("two")
    assert machine.run(f"{spies} setup")[1] == "locked\nproject\n"


def test_versions_go_with_the_project() -> None:
    """Set-up takes exactly the Pythons that the project allows."""
    script = (ROOT / "scripts" / "lib.sh").read_text()
    bounds = re.search(r"\((\d+), (\d+)\) <= sys\.version_info < \((\d+), (\d+)\)", script)
    assert bounds is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={bounds[1]}.{bounds[2]},<{bounds[3]}.{bounds[4]}"


def test_ci_installs_what_is_missing_and_no_more(machine: Machine) -> None:
    """CI's script asks the package manager for git and Python where they are missing, and for nothing where not."""
    (machine.clone / ".ci").mkdir()
    (machine.clone / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    machine.program("apt-get", 'echo "apt-get $*"')
    for script in ("test", "tools"):
        (machine.clone / "scripts" / script).write_text(f'#!/bin/sh\necho "{script} $* $GURNEY_REQUIRE"\n')
        (machine.clone / "scripts" / script).chmod(0o755)
    run = f'bash "{machine.clone}/.ci/run"'
    required = ",".join(PROBES)
    machine.program("docker", "exit 0")
    update, install, *done = machine.run(run)[1].splitlines()
    assert update == "apt-get update"
    wanted = {"git", "python3", "python3-venv", "docker.io", "busybox-static", "prometheus", "gcc", "libc6-dev"}
    assert wanted <= set(install.split())
    assert done == ["tools  ", f"test ci {required}"]
    for program in ("git", "dockerd", "busybox", "prometheus", "caddy", "openssl", "ip", "cc"):
        machine.program(program, "exit 0")
    machine.program("python3", f'exec "{sys.executable}" "$@"')
    machine.program("apt-get", "exit 9")
    assert machine.run(run) == (0, f"tools  \ntest ci {required}\n", "")
