"""Small rules of time: what is told, repeated, saved or missed, and when."""

from datetime import timedelta
from typing import Any

import pytest

from gurney.model.job import WaitReason
from gurney.model.resources import Amount
from gurney.model.run import Heartbeat, NodeState, RunReport
from services.scheduler import census, machine
from services.scheduler.census import is_missing, is_worth_saving, node_of
from services.scheduler.cluster import Cluster, Notes
from services.scheduler.order import entry_of
from services.scheduler.reconcile import is_unanswered
from services.scheduler.runs import is_news
from services.scheduler.waiting import ToldReason, is_due
from tests.core.scheduler_builders import DIR, NOW, SILENT_AFTER, a_placement, a_request

CPU = WaitReason(code="cpu_busy", count=1, message="none")


def after(seconds: float) -> Any:
    return NOW + timedelta(seconds=seconds)


def a_beat(**more: Any) -> Heartbeat:
    fields = {"node": "n1", "incarnation": "i1", "at": NOW, "capacity": Amount(cpu=2), "kinds": (DIR,)} | more
    return Heartbeat(**fields)


@pytest.mark.parametrize(
    ("seconds", "told", "due"),
    [
        (0.5, None, False),
        (1, None, True),
        (90, ToldReason("cpu_busy", NOW), False),
        (59, ToldReason("memory_busy", NOW), False),
        (60, ToldReason("memory_busy", NOW), True),
    ],
)
def test_a_job_hears_why_it_waits_when_that_is_news(seconds: float, told: ToldReason | None, due: bool) -> None:  # noqa: FBT001
    """After a second, then when the first reason has changed, once a minute at most."""
    assert is_due(entry_of(a_request(), NOW), told, CPU, after(seconds)) is due


@pytest.mark.parametrize(
    ("phase", "seconds", "news"), [("staging", 0, True), ("pulling", 1.9, False), ("pulling", 2, True)]
)
def test_counts_come_every_two_seconds_and_phases_at_once(phase: str, seconds: float, news: bool) -> None:  # noqa: FBT001
    """A new phase is told at once, counts of the same one not more often than that."""
    report = RunReport(run_id="r", node="n1", phase=phase, at=NOW)
    assert is_news(Notes(phase="pulling", phase_at=100.0), report, 100.0 + seconds) is news
    assert is_news(Notes(), report, 0.0)


def test_a_command_is_repeated_ten_seconds_after_it_was_told() -> None:
    """A start until it is confirmed, a stop until the run has ended, each ten seconds after the last try."""
    placed = a_placement()
    assert not is_unanswered(placed, 9)
    assert is_unanswered(placed, 10)
    confirmed = machine.confirmed(placed, "n1", 1, 1, NOW)
    assert confirmed is not None
    assert not is_unanswered(confirmed, 99)
    stopping = machine.canceled(confirmed, machine.cancel_outcome(), after(50))
    assert stopping is not None
    assert not is_unanswered(stopping, 9)
    assert is_unanswered(stopping, 10)


def test_a_run_is_missing_when_its_agent_does_not_name_it_for_long() -> None:
    """A confirmed run is looked for from 15 s on; what was not confirmed is not."""
    placed = a_placement()
    confirmed = machine.confirmed(placed, "n1", 1, 1, NOW)
    assert confirmed is not None
    assert is_missing(confirmed, a_beat(), 16)
    assert not is_missing(confirmed, a_beat(), 14)
    assert not is_missing(confirmed, a_beat(runs=(confirmed.id,)), 16)
    assert not is_missing(placed, a_beat(), 16)


def test_a_node_is_saved_when_it_changed_and_now_and_then() -> None:
    """A heartbeat that says nothing new costs no write for half a minute."""
    saved = node_of(a_beat(), NOW).but(revision=7)
    assert not is_worth_saving(saved, node_of(a_beat(), after(5), saved))
    assert is_worth_saving(saved, node_of(a_beat(), after(30), saved))
    assert is_worth_saving(saved, node_of(a_beat(labels={"a": "b"}), after(5), saved))
    assert node_of(a_beat(), after(-5), saved).last_seen_at == NOW


def test_of_an_older_revision_of_a_node_only_the_time_counts() -> None:
    """A heartbeat that was saved before a drain, and is heard of after it, leaves the node drained."""
    cluster = Cluster(SILENT_AFTER)
    joined = cluster.see(node_of(a_beat(), NOW))
    drained = census.drained(joined)
    assert drained is not None
    assert cluster.see(drained) is cluster.nodes["n1"]
    seen = cluster.see(joined.but(last_seen_at=after(5)))
    assert (seen.state, seen.last_seen_at) == (NodeState.DRAINING, after(5))
    assert cluster.see(drained.next(last_seen_at=NOW)).last_seen_at == after(5)


def test_memory_follows_newer_revisions_only() -> None:
    """A change that is heard of late neither undoes a later one nor brings back what has ended."""
    cluster = Cluster(SILENT_AFTER)
    placed = a_placement()
    confirmed = machine.confirmed(placed, "n1", 1, 1, NOW)
    assert confirmed is not None
    ended = machine.ended(confirmed, "n1", machine.cancel_outcome(), NOW)
    assert ended is not None
    cluster.add(placed)
    assert not cluster.put(confirmed)
    assert not cluster.put(placed)
    assert cluster.placements[placed.id] is confirmed
    assert cluster.put(ended)
    assert not cluster.put(confirmed)
    assert dict(cluster.placements) == {}
