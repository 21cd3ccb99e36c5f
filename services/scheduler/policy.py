"""Snapshot and waiting jobs in, plan out. Pure.

Each job is tried in order, and one that does not fit now does not keep those behind it from room that it cannot use,
unless it has booked that. Room only shrinks within a plan, so once a job does not fit beside what is kept, no other of
its shape is tried there. Last, those that found no room book some: that is for the next plan.
"""

from gurney.model.job import WaitReason
from services.scheduler import rank
from services.scheduler.bookings import booked
from services.scheduler.order import Lane, Shapes, waits
from services.scheduler.plan import Blocked, Plan
from services.scheduler.shape import Shape
from services.scheduler.snapshot import Snapshot
from services.scheduler.trial import Found, Trial
from services.scheduler.turns import Line, Rules


def evaluate(snapshot: Snapshot, waiting: Shapes, rules: Rules, chance: rank.Chance | None = None) -> Plan:
    """Place what fits, in order; say of the rest why it waits. `chance` chooses between equal nodes, else their ids."""
    trial = Trial(snapshot, rules, chance)
    full = {shape for shape in waiting if not trial.has_room(shape)}
    groups = [list(lanes.values()) for shape, lanes in waiting.items() if shape not in full]
    groups += [trial.may_borrow(shape, waiting[shape].values()) for shape in full]
    before = [each for each in snapshot.bookings.values() if waits(waiting, each.entry)]
    groups += [[[each.entry]] for each in before if trial.may_claim(each)]
    line = Line(groups, rules, snapshot.using, snapshot.whole)
    over_quota: dict[Lane, WaitReason] = {}
    try:
        _fill(trial, line, full, over_quota)
        lanes = {shape: waiting[shape] for shape in full}
        bookings = booked(lanes, [each for each in before if not trial.is_live(each.job_id)], trial, line, rules)
        load = trial.load
    finally:
        trial.take_back()
    return Plan(
        decisions=tuple(trial.decisions),
        blocked=Blocked(full, trial.reasons),
        over_quota=over_quota,
        bookings=bookings,
        live=snapshot.live,
        after=trial.after(line.projects, bookings),
        load=load,
    )


def _fill(trial: Trial, line: Line, full: set[Shape], over_quota: dict[Lane, WaitReason]) -> None:
    """Place what fits; add to `full` what does not fit any more, and to `over_quota`, too."""
    for entry in line:
        if entry.lane in over_quota:
            continue
        if trial.is_live(entry.job_id):
            line.go_on()
            continue
        found = trial.claim(entry) or (None if entry.shape in full else trial.find(entry))
        if found is None:
            full.add(entry.shape)
            if not trial.lends(entry.shape):
                line.close()
                continue
            found = trial.borrow(entry)
        if found and (reason := _place(found, trial, line)):
            over_quota[entry.lane] = reason
        elif found:
            line.go_on()


def _place(found: Found, trial: Trial, line: Line) -> WaitReason | None:
    """Place a job, or return what of its project's quota it would exceed."""
    project = found.decision.entry.lane.project
    reason = line.over_quota(project, found.takes)
    if reason is None:
        trial.place(found)
        line.give(project, found.takes)
    return reason
