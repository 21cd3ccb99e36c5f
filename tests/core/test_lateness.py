"""Which questions nobody waits for any more, without a common clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney import clock
from gurney.lateness import MOST, Asker, Askers

PATIENCE_S = 5.0


class Hosts:
    """Two hosts; `apart` is how far the asker's clock is behind the answerer's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, apart: float = 0.0) -> None:
        self.now = 1000.0
        self.apart = apart
        self.asker = Asker()
        self.askers = Askers()
        self._is_asker = False
        monkeypatch.setattr(clock, "monotonic", lambda: self.now - (self.apart if self._is_asker else 0.0))

    def ask(self) -> str:
        self._is_asker = True
        try:
            return self.asker.header(PATIENCE_S)
        finally:
            self._is_asker = False

    def is_late(self, after_s: float) -> bool:
        """Ask, let it wait for so long, and tell what the answerer says."""
        question = self.ask()
        self.now += after_s
        return self.askers.is_late(question)


@pytest.mark.parametrize("apart", [0.0, -86_400.0, 3600.0])
def test_a_question_that_waited_longer_than_its_asker_is_late(monkeypatch: pytest.MonkeyPatch, apart: float) -> None:
    """However far the clocks of two hosts are apart."""
    hosts = Hosts(monkeypatch, apart)
    assert not hosts.is_late(after_s=0.01)
    assert not hosts.is_late(after_s=PATIENCE_S - 0.1)
    assert hosts.is_late(after_s=PATIENCE_S + 0.1)
    assert not hosts.is_late(after_s=0.01)


def test_clocks_that_drift_make_nothing_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred millionths a second for a week, with one question an hour."""
    hosts = Hosts(monkeypatch)
    for _ in range(7 * 24):
        assert not hosts.is_late(after_s=0.01)
        hosts.now += 3600
        hosts.apart += 3600 * 1e-4


def test_an_asker_whose_clock_jumped_is_heard_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine that was paused has a clock that is behind for ever."""
    hosts = Hosts(monkeypatch)
    assert not hosts.is_late(after_s=0.01)
    hosts.apart = 60
    assert hosts.is_late(after_s=0.01)
    hosts.asker.rename()
    assert not hosts.is_late(after_s=0.01)
    assert hosts.is_late(after_s=PATIENCE_S + 0.1)


def test_only_so_many_askers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who was silent for longest is forgotten: his next question is his first."""
    hosts = Hosts(monkeypatch)
    assert not hosts.is_late(after_s=0)
    for _ in range(MOST):
        assert not hosts.askers.is_late(Asker().header(PATIENCE_S))
    assert not hosts.is_late(after_s=60)


@given(
    st.one_of(st.none(), st.text(max_size=40), st.sampled_from(["a 1 2 3", "a b 1", "a 1 b", "a nan nan", "a inf 1"]))
)
def test_a_header_of_another_form_is_never_late(header: str | None) -> None:
    """An integrator's question carries none, and what is no header of ours breaks nothing."""
    askers = Askers()
    assert not askers.is_late(header)
    assert not askers.is_late(header)
