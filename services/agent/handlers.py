"""Commands of the scheduler to this node: start, stop, inspect. Each is acknowledged when its work is safe."""

from gurney.consume import Reject
from gurney.ids import split_run_id
from gurney.model.map import InspectMap
from gurney.model.run import StartRun, StopRun
from services.agent.inspection import Inspector
from services.agent.supervisor import Supervisor


class Handlers:
    """Everything that the agent is told."""

    def __init__(self, node: str, supervisor: Supervisor, inspector: Inspector) -> None:
        self._node = node
        self._supervisor = supervisor
        self._inspector = inspector

    async def command(self, subject: str, data: bytes) -> None:
        """Take `run.<node>.<command>.<id>`."""
        _, _, command, about = subject.split(".")
        match command:
            case "start":
                start = StartRun.decode(data)
                self._check(about, start.run_id, start.node)
                await self._supervisor.start(start)
            case "stop":
                stop = StopRun.decode(data)
                self._check(about, stop.run_id, stop.node)
                await self._supervisor.stop(stop.run_id, stop.epoch)
            case "inspect":
                await self._inspector.inspect(InspectMap.decode(data))
            case _:
                raise Reject(f"there is no command {command}")

    def _check(self, about: str, run_id: str, node: str) -> None:
        """Refuse what is not for us: the run's id becomes the name of a folder."""
        try:
            split_run_id(run_id)
        except ValueError as error:
            raise Reject(str(error)) from error
        if about != run_id or node != self._node:
            raise Reject(f"a command for {run_id} on {node} came to {self._node} as {about}")
