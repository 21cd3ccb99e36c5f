"""Documents that people rely on say what they must, and the commands in them are there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gurney.model.job import JobState
from gurney.settings import Settings
from gurney.subjects import OPERATIONS, SUBJECTS
from services.edge.routes import ROUTES
from services.inference_server.settings import PREFIX, InferenceServerSettings

ROOT = Path(__file__).parents[2]
ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))
STATUS = re.compile(r"^Status: (proposed|accepted|superseded by \d{4})$", re.MULTILINE)
DATE = re.compile(r"^Date: \d{4}-\d{2}-\d{2}$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def test_there_are_adrs() -> None:
    """The decisions that interpret the wishes of users are written down, numbered without a gap."""
    assert [int(adr.name[:4]) for adr in ADRS] == list(range(1, len(ADRS) + 1))
    assert len(ADRS) >= 3


@pytest.mark.parametrize("adr", ADRS, ids=lambda adr: adr.stem)
def test_adr_has_status_and_date(adr: Path) -> None:
    """A decision says whether it holds, and since when."""
    text = adr.read_text("utf-8")
    assert text.startswith(f"# {int(adr.name[:4])}. ")
    assert STATUS.search(text)
    assert DATE.search(text)


def test_commands_of_the_readme_exist() -> None:
    """The README names the two commands that a newcomer needs, and every script that it names is there."""
    named = set(re.findall(r"\bscripts/\w+", (ROOT / "README.md").read_text("utf-8")))
    assert {"scripts/demo", "scripts/test"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_links_between_documents_lead_somewhere() -> None:
    """A relative link in the README or below docs leads to a file."""
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for target in LINK.findall(document.read_text("utf-8"))
        if not (document.parent / target).exists()
    ]
    assert broken == []


def test_fragments_make_a_change_log() -> None:
    """The fragments of the next release can be put together into an entry of the change log."""
    command = [str(Path(sys.executable).with_name("towncrier")), "build", "--draft", "--version", "0"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    for fragment in (ROOT / "changelog.d").glob("*.*.md"):
        first = fragment.read_text("utf-8").split()[0]
        assert first in told.stdout, fragment.name


def test_generated_tables_are_current() -> None:
    """The tables of subjects, routes, errors, settings and states say what the code says (`scripts/docs`)."""
    names = ("subjects", "rest", "errors", "settings", "job-states", "migrate/inference-server")
    pages = [f"docs/{name}.md" for name in names]
    command = [str(Path(sys.executable).with_name("cog")), "--check", *pages]
    told = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_subject_setting_route_and_state_has_its_line() -> None:
    """What the code knows, the pages name."""
    wanted = {
        "subjects": [subject.template for subject in SUBJECTS] + [operation.subject for operation in OPERATIONS],
        "settings": [f"GURNEY_{name.upper()}" for name in Settings.model_fields],
        "migrate/inference-server": [f"{PREFIX}{name.upper()}" for name in InferenceServerSettings.model_fields],
        "rest": [f"{route.method} {route.path}" for route in ROUTES],
        "job-states": [state.value for state in JobState],
    }
    pages = {name: (ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in wanted}
    assert [each for name, names in wanted.items() for each in names if each not in pages[name]] == []
