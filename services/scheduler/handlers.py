"""Who does what with which message: `admission` answers the job service, `runs` agents, `nodes` the edge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gurney.bus import Answer
from gurney.consume import Handle
from gurney.model.base import Message
from gurney.streams import SCHEDULER_CANCEL, SCHEDULER_REPORTS, SCHEDULER_REQUESTED, Consumer
from gurney.subjects import (
    SCHEDULER_ADMIT,
    SCHEDULER_CONFIRM,
    SCHEDULER_DRAIN,
    SCHEDULER_ENDED,
    SCHEDULER_EXPLAIN,
    SCHEDULER_INSPECT,
    SCHEDULER_NODE,
    SCHEDULER_NODES,
    SCHEDULER_PLACEMENTS,
    SCHEDULER_RELEASE,
    SCHEDULER_RESUME,
    Operation,
)
from services.scheduler.admission import AdmissionDesk
from services.scheduler.beats import Beats
from services.scheduler.nodes import Nodes
from services.scheduler.runs import Runs
from services.scheduler.tenure import Tenure


@dataclass(frozen=True)
class Handlers:
    """Everything that the scheduler is asked and told."""

    tenure: Tenure
    desk: AdmissionDesk
    runs: Runs
    nodes: Nodes
    beats: Beats

    @property
    def answers(self) -> Mapping[Operation[Any, Any], Answer]:
        answers: dict[Operation[Any, Any], Answer] = {
            SCHEDULER_ADMIT: self.desk.admit,
            SCHEDULER_RELEASE: self.desk.release,
            SCHEDULER_EXPLAIN: self.desk.explain,
            SCHEDULER_PLACEMENTS: self.desk.placements,
            SCHEDULER_CONFIRM: self.runs.confirm,
            SCHEDULER_ENDED: self.runs.ended,
            SCHEDULER_NODES: self.nodes.page,
            SCHEDULER_NODE: self.nodes.get,
            SCHEDULER_DRAIN: self.nodes.drain,
            SCHEDULER_RESUME: self.nodes.resume,
            SCHEDULER_INSPECT: self.nodes.inspect,
        }
        return {operation: self._leading(answer) for operation, answer in answers.items()}

    @property
    def consumers(self) -> Mapping[Consumer, Handle]:
        return {
            SCHEDULER_REQUESTED: self.desk.requested,
            SCHEDULER_CANCEL: self.runs.on_cancel,
            SCHEDULER_REPORTS: self.runs.reported,
        }

    def _leading(self, answer: Answer) -> Answer:
        """Answer as the leader only: a question may have lain in the socket of a process that was frozen."""

        async def answered(question: Any) -> Message:
            self.tenure.check()
            return await answer(question)

        return answered
