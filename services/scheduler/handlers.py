"""Who does what with which message. What a job service asks is in `admission`, agents in `runs`, nodes in `nodes`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gurney.bus import Answer
from gurney.consume import Handle
from gurney.streams import SCHEDULER_CANCEL, SCHEDULER_REPORTS, SCHEDULER_REQUESTED, Consumer
from gurney.subjects import (
    SCHEDULER_ADMIT,
    SCHEDULER_CONFIRM,
    SCHEDULER_ENDED,
    SCHEDULER_EXPLAIN,
    SCHEDULER_INSPECT,
    SCHEDULER_NODE,
    SCHEDULER_NODES,
    SCHEDULER_PLACEMENTS,
    SCHEDULER_RELEASE,
    Operation,
)
from services.scheduler.admission import AdmissionDesk
from services.scheduler.effects import Effects
from services.scheduler.nodes import Nodes
from services.scheduler.runs import Runs


@dataclass(frozen=True)
class Handlers:
    """Everything that the scheduler is asked and told."""

    desk: AdmissionDesk
    runs: Runs
    nodes: Nodes
    effects: Effects

    @property
    def answers(self) -> Mapping[Operation[Any, Any], Answer]:
        return {
            SCHEDULER_ADMIT: self.desk.admit,
            SCHEDULER_RELEASE: self.desk.release,
            SCHEDULER_EXPLAIN: self.desk.explain,
            SCHEDULER_PLACEMENTS: self.desk.placements,
            SCHEDULER_CONFIRM: self.runs.confirm,
            SCHEDULER_ENDED: self.runs.ended,
            SCHEDULER_NODES: self.nodes.page,
            SCHEDULER_NODE: self.nodes.get,
            SCHEDULER_INSPECT: self.nodes.inspect,
        }

    @property
    def consumers(self) -> Mapping[Consumer, Handle]:
        return {
            SCHEDULER_REQUESTED: self.desk.requested,
            SCHEDULER_CANCEL: self.runs.on_cancel,
            SCHEDULER_REPORTS: self.runs.reported,
        }
