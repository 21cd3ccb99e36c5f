"""Figures out of runs. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from services.simulate.fill import Filled
from services.simulate.queue import SHORT_S, WIDE, Replayed
from services.simulate.trace import Task


def of_fills(runs: Sequence[Filled]) -> dict[str, Any]:
    """Return what runs of the FGD protocol come to. All but times in per cent."""
    allocations = [run.allocation for run in runs]
    later = [run.later_allocation for run in runs if run.later_allocation is not None]
    later_fragmentation = [run.later_fragmentation for run in runs if run.later_fragmentation is not None]
    return {
        "allocation_mean": round(fmean(allocations), 3),
        "allocation_sd": round(stdev(allocations), 3) if len(allocations) > 1 else 0.0,
        "allocations": [round(each, 3) for each in allocations],
        "fragmentation": round(fmean(run.fragmentation for run in runs), 3),
        **(
            {
                "departures_allocation_mean": round(fmean(later), 3),
                "departures_fragmentation": round(fmean(later_fragmentation), 3),
            }
            if later
            else {}
        ),
        **of_times([each for run in runs for each in run.decision_ms]),
    }


def of_replays(runs: Sequence[Replayed]) -> dict[str, Any]:
    """Return what replays come to: seconds, per cent, and ratios."""
    waits = [each for run in runs for each in run.waits]
    return {
        "replayed_allocation": round(fmean(run.allocation for run in runs), 3),
        "jobs": len(waits),
        "never_placed": sum(run.never for run in runs),
        "wait_mean_s": _mean(wait for _, wait in waits),
        "wait_p95_s": round(percentile([wait for _, wait in waits], 95), 3),
        "wide_wait_mean_s": _mean(wait for task, wait in waits if task.shape.gpus >= WIDE),
        "jct_mean_s": _mean(wait + task.runs for task, wait in waits),
        "slowdown_mean": _mean(map(_slowdown, waits)),
        "jain_index": round(jain(_by_project(waits).values()), 4),
        **of_times([each for run in runs for each in run.decision_ms]),
    }


def of_times(times: Sequence[float]) -> dict[str, float]:
    return {
        "decisions": len(times),
        "decision_ms_p50": round(percentile(times, 50), 3),
        "decision_ms_p99": round(percentile(times, 99), 3),
    }


def percentile(values: Iterable[float], per_cent: float) -> float:
    """Return the least value that this per cent of all do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(per_cent / 100 * len(ordered)) - 1)] if ordered else 0.0


def jain(values: Iterable[float]) -> float:
    """Return Jain's index of fairness: 1 where all are the same, 1 / n where one has everything."""
    found = list(values)
    squares = sum(each * each for each in found)
    return sum(found) ** 2 / (len(found) * squares) if squares else 1.0


def _by_project(waits: Iterable[tuple[Task, float]]) -> Mapping[str, float]:
    """Return the mean slowdown of each project."""
    found = defaultdict(list)
    for each in waits:
        found[each[0].project].append(_slowdown(each))
    return {project: fmean(slowdowns) for project, slowdowns in found.items()}


def _slowdown(each: tuple[Task, float]) -> float:
    task, wait = each
    return (wait + task.runs) / max(task.runs, SHORT_S)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return round(fmean(found), 3) if found else 0.0
