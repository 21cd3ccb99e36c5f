"""The profiles of a run: which tests it leaves out, and how many examples Hypothesis tries."""

import shutil
import tempfile
from collections import Counter

import pytest
from hypothesis import settings

#: Profile -> the markers that it leaves out.
LEFT_OUT = {"quick": ("slow", "long"), "ci": ("long",), "long": ()}

# No deadlines: a test machine is shared, and no promise of ours is about the time of one example.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("long", max_examples=1000, deadline=None)

#: Bytes of the temporary folder: nodes whose disk is full take no jobs, and MinIO nothing at all.
WHOLE_TAKES = 6 << 30

left_out = pytest.StashKey[Counter[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that `scripts/test` gives."""
    group = parser.getgroup("gurney")
    group.addoption("--profile", choices=list(LEFT_OUT), default="ci", help="which tests run: quick, ci or long")
    group.addoption("--whole", action="store_true", help="hold the run against the matrix of bad input")


def pytest_configure(config: pytest.Config) -> None:
    """Load the Hypothesis profile of the same name; refuse a whole run where the disk has no room for it."""
    settings.load_profile(config.getoption("--profile"))
    folder = tempfile.gettempdir()
    if config.getoption("--whole") and (free := shutil.disk_usage(folder).free) < WHOLE_TAKES:
        raise pytest.UsageError(f"a whole run takes {WHOLE_TAKES >> 30} GiB of {folder}; {free >> 20} MiB are free")
    config.stash[left_out] = Counter()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the profile leaves out, and run the linters first: they are the quickest to fail."""
    markers = LEFT_OUT[config.getoption("--profile")]
    kept: list[pytest.Item] = []
    gone: list[pytest.Item] = []
    for item in items:
        marker = next((name for name in markers if item.get_closest_marker(name)), None)
        (kept if marker is None else gone).append(item)
        if marker is not None:
            config.stash[left_out][marker] += 1
    if gone:
        config.hook.pytest_deselected(items=gone)
    items[:] = sorted(kept, key=lambda item: item.path.name != "test_lint.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many tests the profile left out."""
    for marker, count in sorted(config.stash[left_out].items()):
        profile = config.getoption("--profile")
        terminalreporter.write_line(f"left out: {count} test(s) marked `{marker}`, by the profile `{profile}`")
