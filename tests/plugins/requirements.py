"""The requirement report: which ids of `tests/requirements.toml` this run proves, by `@pytest.mark.req("MAS-10")`.

A mark counts on tests under `tests/e2e` alone, because only they go through the public interface, and for the ids that
need real containers only beside `@pytest.mark.needs("docker")`. An id is proven when every test that counts for it ran
and passed, and there is one.
"""

import tomllib
from collections import defaultdict
from pathlib import Path
from textwrap import fill

import pytest

TESTS = Path(__file__).parents[1]
LIST = TESTS / "requirements.toml"
#: These speak of a container, so that a process does not prove them.
NEED_CONTAINERS = frozenset({"MAS-10", "MAS-11", "MAS-32", "MAS-42", "MAS-51"})


class Report:
    """What the marked tests of one run came to."""

    def __init__(self, known: dict[str, str], e2e: Path) -> None:
        """Start with nothing proven; `known` maps an id to its text."""
        self.known = known
        self.e2e = e2e
        self.passed: defaultdict[str, set[str]] = defaultdict(set)
        self.failed: defaultdict[str, set[str]] = defaultdict(set)
        self.uncounted: set[str] = set()
        self._ids: dict[str, set[str]] = {}

    def enlist(self, item: pytest.Item) -> None:
        """Note which ids a test counts for."""
        for mark in item.iter_markers("req"):
            for requirement in mark.args:
                if requirement not in self.known:
                    raise pytest.UsageError(f"{item.nodeid} marks {requirement!r}, which {LIST.name} does not know")
                if not item.path.is_relative_to(self.e2e):
                    raise pytest.UsageError(f"{item.nodeid} marks {requirement}: marks count under tests/e2e alone")
                if requirement in NEED_CONTAINERS and not self._in_containers(item):
                    self.uncounted.add(requirement)
                else:
                    self._ids.setdefault(item.nodeid, set()).add(requirement)

    def note(self, report: pytest.TestReport) -> None:
        """Note how one phase of a test went: only a test that ran and tore down cleanly proves something."""
        for requirement in self._ids.get(report.nodeid, ()):
            if report.failed:
                self.failed[requirement].add(report.nodeid)
            elif report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
                self.passed[requirement].add(report.nodeid)

    @property
    def enlisted(self) -> bool:
        """Whether any test counts for any id."""
        return bool(self._ids)

    def proven(self) -> list[str]:
        """Return the ids that this run proves, in the order of the list."""
        return [requirement for requirement in self.known if self.passed[requirement] and not self.failed[requirement]]

    def lines(self, *, texts: bool) -> list[str]:
        """Return the report, with the texts of what is not proven if asked."""
        proven = self.proven()
        open_ = [requirement for requirement in self.known if requirement not in proven]
        failed = [requirement for requirement in open_ if self.failed[requirement]]
        lines = [_ids(f"proven, {len(proven)} of {len(self.known)}", proven)]
        if failed:
            lines.append(_ids("marked, and a test of them failed", failed))
        if uncounted := [requirement for requirement in open_ if requirement in self.uncounted]:
            lines.append(_ids("shown without containers, which does not count", uncounted))
        lines.append(_ids(f"not proven, {len(open_)}", open_))
        if texts:
            lines += [f"  {requirement}  {self.known[requirement]}" for requirement in open_]
        return lines

    @staticmethod
    def _in_containers(item: pytest.Item) -> bool:
        return any("docker" in mark.args for mark in item.iter_markers("needs"))


def _ids(title: str, ids: list[str]) -> str:
    return fill(f"{title}: {' '.join(ids) or 'none'}", 118, subsequent_indent="  ", break_on_hyphens=False)


def known_requirements() -> dict[str, str]:
    """Return id -> text of all requirements, in their order."""
    return {
        requirement: text
        for family in tomllib.loads(LIST.read_text("utf-8")).values()
        for requirement, text in family.items()
    }


report_key = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    """Start an empty report."""
    report = Report(known_requirements(), TESTS / "e2e")
    config.stash[report_key] = report
    config.pluginmanager.register(_Listener(report), "requirement-listener")


class _Listener:
    """Hears the reports of tests, whose hook is not given the configuration."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.report.note(report)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Read the marks of the tests that will run."""
    for item in items:
        config.stash[report_key].enlist(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the report after whole runs, and after those that could prove something."""
    if not config.getoption("--whole") and not config.stash[report_key].enlisted:
        return
    terminalreporter.section("requirements")
    for line in config.stash[report_key].lines(texts=config.get_verbosity() > 0):
        terminalreporter.write_line(line)
