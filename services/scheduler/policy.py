"""Snapshot and waiting jobs in, plan out. Pure.

Who has booked room goes first, once there is enough of it. Then each job is tried in order, and one that does not fit
now does not keep those behind it from room that it cannot use. Room only shrinks within a plan, so once a job does not
fit, no other of its shape is tried. Last, those that found no room book some: that is for the next plan.
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
    heads = [lane for shape, lanes in waiting.items() if shape not in full for lane in lanes.values()]
    line = Line(heads, rules, snapshot.using, snapshot.whole)
    over_quota: dict[Lane, WaitReason] = {}
    try:
        before = [each for each in snapshot.bookings.values() if waits(waiting, each.entry)]
        for booking in before:
            if (found := trial.claim(booking)) and (reason := _place(found, trial, line)):
                over_quota[booking.entry.lane] = reason
        full |= _fill(trial, line, full, over_quota)
        lanes = [lane for shape in full for lane in waiting[shape].values()]
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


def _fill(trial: Trial, line: Line, full: set[Shape], over_quota: dict[Lane, WaitReason]) -> set[Shape]:
    """Place what fits; returns the shapes that find no room any more, or only some that is kept for others."""
    found_none: set[Shape] = set()
    kept_out: set[Shape] = set()
    for entry in line:
        if entry.shape in full or entry.shape in found_none or entry.lane in over_quota:
            continue
        if trial.is_live(entry.job_id):
            line.go_on()
        elif found := trial.find(entry):
            if reason := _place(found, trial, line):
                over_quota[entry.lane] = reason
            else:
                line.go_on()
        else:
            (kept_out if trial.has_room(entry.shape) else found_none).add(entry.shape)
    return found_none | kept_out


def _place(found: Found, trial: Trial, line: Line) -> WaitReason | None:
    """Place a job, or return what of its project's quota it would exceed."""
    project = found.decision.entry.lane.project
    reason = line.over_quota(project, found.takes)
    if reason is None:
        trial.place(found)
        line.give(project, found.takes)
    return reason
