"""What the test run says about itself is true: tried on small test trees of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.plugins.matrix import Cells, Matrix

ROOT = Path(__file__).parents[2]

CELLS = """
ROUTES = [("GET", "/v1/maps"), ("POST", "/v1/maps")]
STATUSES = [401, 422]
CANNOT = {("GET", "/v1/maps", 422): "takes no body"}
"""

SEEN = """
from tests.plugins.matrix import record

def test_inputs():
    record("/v1/maps", "GET", 401, "no token")
    record("/v1/maps", "POST", 401, "no token")
    record("/v1/maps", "POST", 422, "no urn")
    record("/v1/maps", "POST", 422, "broken urn")
"""


class Tree:
    """A test tree with the plugins of this one."""

    def __init__(self, folder: Path) -> None:
        """Copy the plugins into a folder."""
        self.folder = folder
        shutil.copytree(ROOT / "tests" / "plugins", folder / "tests" / "plugins")
        names = ["profiles", "servers", "requirements", "matrix"]
        self.write("tests/conftest.py", f"pytest_plugins = {[f'tests.plugins.{name}' for name in names]}")
        self.write("tests/requirements.toml", '[MAS]\nMAS-01 = "one"\nMAS-10 = "ten"\nMAS-20 = "twenty"\n')
        self.write(
            "pytest.toml",
            """
            [pytest]
            addopts = ["--import-mode=importlib", "-p", "no:cacheprovider"]
            pythonpath = ["."]
            strict = true
            asyncio_default_fixture_loop_scope = "function"
            markers = ["req(id): a requirement", "slow: slow", "long: long"]
            """,
        )

    def write(self, path: str, text: str) -> None:
        """Write a file of the tree."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(dedent(text))

    def run(self, *arguments: str, require: str = "", path: str | None = None) -> tuple[int, str]:
        """Run pytest over the tree; return its exit code and what it printed."""
        environment = os.environ | {"GURNEY_REQUIRE": require, "COLUMNS": "200", "PATH": path or os.environ["PATH"]}
        command = [sys.executable, "-m", "pytest", *arguments]
        told = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return told.returncode, told.stdout + told.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty test tree."""
    return Tree(tmp_path)


def test_requirement_is_proven_by_passing_tests(tree: Tree) -> None:
    """An id is proven by a test that passed, and not when another one of it failed."""
    tree.write(
        "tests/e2e/test_it.py",
        """
        import pytest

        @pytest.mark.req("MAS-01")
        def test_passes(): pass

        @pytest.mark.req("MAS-20")
        def test_passes_too(): pass

        @pytest.mark.req("MAS-20")
        def test_fails(): assert False
        """,
    )
    code, told = tree.run()
    assert code == 1
    assert "proven, 1 of 3: MAS-01\n" in told
    assert "a test of them failed: MAS-20\n" in told
    assert "not proven, 2: MAS-10 MAS-20\n" in told
    assert re.search(r"=+ 1 failed, 2 passed in .*=+\n$", told)


@pytest.mark.parametrize("body", ["pytest.skip()", "pytest.xfail()"])
def test_test_that_did_not_pass_proves_nothing(tree: Tree, body: str) -> None:
    """A test that was skipped or failed as expected proves nothing."""
    tree.write("tests/e2e/test_it.py", f'import pytest\n@pytest.mark.req("MAS-01")\ndef test_it(): {body}\n')
    code, told = tree.run()
    assert code == 0
    assert "proven, 0 of 3: none\n" in told


def test_requirements_about_containers_need_containers(tree: Tree) -> None:
    """For an id that speaks of containers a process is no proof, and the report says that it was shown without."""
    tree.write("tests/e2e/test_it.py", 'import pytest\n@pytest.mark.req("MAS-10")\ndef test_it(): pass\n')
    _, told = tree.run("--whole")
    assert "proven, 0 of 3: none\n" in told
    assert "shown without containers, which does not count: MAS-10\n" in told
    tree.write(
        "tests/plugins/servers_there.py", "from tests.plugins.servers import PROBES\nPROBES['docker'] = lambda: None"
    )
    tree.write(
        "tests/e2e/test_it.py",
        'import pytest\n@pytest.mark.needs("docker")\n@pytest.mark.req("MAS-10")\ndef test_it(): pass\n',
    )
    tree.write("tests/e2e/conftest.py", "import tests.plugins.servers_there")
    code, told = tree.run()
    assert code == 0
    assert "proven, 1 of 3: MAS-10\n" in told


@pytest.mark.parametrize(("place", "requirement"), [("core", "MAS-01"), ("e2e", "MAS-99")])
def test_mark_that_cannot_count_stops_the_run(tree: Tree, place: str, requirement: str) -> None:
    """A mark outside of the end-to-end tests, or of an id that nobody knows, is an error of its author."""
    tree.write(f"tests/{place}/test_it.py", f'import pytest\n@pytest.mark.req("{requirement}")\ndef test_it(): pass\n')
    code, told = tree.run()
    assert code == pytest.ExitCode.USAGE_ERROR
    assert requirement in told


def test_whole_run_with_a_full_matrix_passes(tree: Tree) -> None:
    """A matrix with every cell seen or excused is printed and is one more passed test."""
    tree.write("tests/e2e/matrix_cells.py", CELLS)
    tree.write("tests/e2e/test_it.py", SEEN)
    code, told = tree.run("--whole")
    assert code == 0
    assert re.search(r"GET /v1/maps +1 +-\nPOST /v1/maps +1 +2\n", told)
    assert re.search(r"=+ 2 passed in .*=+\n$", told)


def test_whole_run_with_an_empty_cell_fails(tree: Tree) -> None:
    """An empty cell fails the whole run and is named, and a part of the run is not held against the matrix."""
    tree.write("tests/e2e/matrix_cells.py", CELLS.replace("401, 422", "401, 409, 422"))
    tree.write("tests/e2e/test_it.py", SEEN)
    code, told = tree.run("--whole")
    assert code == 1
    assert "POST /v1/maps 409: no test led here" in told
    assert re.search(r"=+ 1 failed, 1 passed in .*=+\n$", told)
    assert tree.run("tests/e2e")[0] == 0


def test_matrix_tells_every_kind_of_fault() -> None:
    """A refuted excuse, an idle one and an unknown route are faults like an empty cell."""
    matrix = Matrix()
    matrix.record("/a", "GET", 401, "no token")
    matrix.record("/b", "GET", 200, "all well")
    cells = Cells([("GET", "/a")], [401, 404], {("GET", "/a", 401): "open to all", ("GET", "/a", 500): "never"})
    assert matrix.faults(cells) == [
        "GET /a 404: no test led here",
        "GET /a 401: excused (open to all), but seen by: no token",
        "GET /a 500: excused, but no cell of the matrix",
        "GET /b: answered, but not in the list",
    ]


def test_profiles_leave_out_what_they_say(tree: Tree) -> None:
    """Each profile leaves out its markers, and the run tells how many."""
    tree.write(
        "tests/core/test_it.py",
        """
        import pytest

        def test_plain(): pass

        @pytest.mark.slow
        def test_slow(): pass

        @pytest.mark.long
        def test_long(): pass
        """,
    )
    assert " 1 passed, 2 deselected" in tree.run("--profile", "quick")[1]
    ci = tree.run()[1]
    assert " 2 passed, 1 deselected" in ci
    assert "left out: 1 test(s) marked `long`, by the profile `ci`\n" in ci
    assert " 3 passed in" in tree.run("--profile", "long")[1]


def test_missing_server_is_told(tree: Tree, tmp_path: Path) -> None:
    """A test whose server is missing is left out with the reason; a required one that is missing stops the run."""
    tree.write("tests/core/test_it.py", 'import pytest\n@pytest.mark.needs("docker")\ndef test_it(): pass\n')
    nowhere = str(tmp_path / "nowhere")
    code, told = tree.run(path=nowhere)
    assert code == 0
    assert "left out: 1 test(s) that need `docker`: no docker on PATH\n" in told
    for require in ("docker", "dokcer"):
        code, told = tree.run(require=require, path=nowhere)
        assert code == pytest.ExitCode.USAGE_ERROR
        assert f"GURNEY_REQUIRE names '{require}'" in told
    assert tree.run(require="nats", path=nowhere)[0] == 0
