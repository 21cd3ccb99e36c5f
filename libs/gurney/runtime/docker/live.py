"""One run whose mark is left: its time, its stop, its output, its end."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gurney import clock
from gurney.errors import Unavailable
from gurney.runtime.docker.daemon import Refused
from gurney.runtime.docker.ending import NOT_EXECUTED, State, end_of, lost, state_of
from gurney.runtime.docker.groups import Used
from gurney.runtime.docker.host import Host
from gurney.runtime.docker.output import Output
from gurney.runtime.docker.records import Ending, Mark
from gurney.runtime.port import Cause, End

_AGAIN_S = 0.5
_ABSENT, _KILLED = 404, 137
#: Exit codes by which containers end that go down with their daemon.
_CUT_OFF = frozenset({137, 143, 255})
#: What a daemon says of a container that ended while it was away, and of whose end it found no trace.
_UNKNOWN = 255
#: By how much the clocks of the daemon and of this host may differ, in whole seconds.
_CLOCKS_S = 1
_TAKEN_DOWN = "the Docker daemon went down and took the container with it"
_SIGNALLED = "somebody else has ended the container"
#: A daemon that finds a container of whose end it has not heard says that its exit code is 0.
_NOT_SEEN = "the Docker daemon was away when the container ended, and does not know how"


class LiveRun:
    """A run that may be running. `enforce` is its task as long as it lives; `end` finds out how it ended."""

    def __init__(
        self, host: Host, run_id: str, mark: Mark, ending: Ending | None = None, output: Output | None = None
    ) -> None:
        """`output`: we have begun it ourselves, just now, and hear what it says."""
        self.run_id = run_id
        self.mark = mark
        self.task: asyncio.Task[None] | None = None
        self.finishing: asyncio.Task[None] | None = None
        self._host = host
        self._ending = ending
        self._changed = asyncio.Event()
        self._output = output or Output(host, run_id, mark.container)
        #: Nobody may have ended it at its timeout.
        self._was_alone = output is None
        self._began: datetime | None = None
        #: Since when its time counts, by the monotonic clock.
        self._since = clock.monotonic() - (0.0 if output else clock.now().timestamp() - mark.started_at)
        self._is_oom = False
        #: Somebody has signalled it; we note it for all, and where it was we, there is an `_ending`.
        self._was_signalled = False
        #: Until when it may live, by the monotonic clock; None: it has no lease.
        self.lease_until: float | None = None
        self._memory: int | None = None
        self._peak: int | None = None
        self._cpu_s: float | None = None

    # --- what is heard of it ---

    def heard_start(self, nanoseconds: int) -> None:
        self._began = _at(nanoseconds)

    def heard_oom(self) -> None:
        """The kernel has ended one of its processes for want of memory: it ends the others, too."""
        self._is_oom = True
        self.end_by(Cause.MEMORY, 0.0)

    def heard_signal(self) -> None:
        self._was_signalled = True

    @property
    def has_lapsed(self) -> bool:
        return self.lease_until is not None and clock.monotonic() >= self.lease_until

    def lease(self, until: float) -> None:
        """Let it live until then, unless it is too late."""
        if not self.has_lapsed:
            self.lease_until = max(until, self.lease_until or 0.0)
            self._changed.set()

    def sampled(self, used: Used) -> None:
        """Note what it has used so far."""
        self._memory = used.memory
        self._peak = max(self._peak or 0, used.memory or 0) or None
        self._cpu_s = used.cpu_s or self._cpu_s

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes more are surely within its memory."""
        return not self.mark.memory or (self._memory is not None and self._memory + size <= self.mark.memory)

    def was_cut_off(self) -> None:
        """Note that the daemon broke off: something may not have been heard."""
        self._output.is_pieced = True

    async def adopt(self) -> None:
        """Take on a run that goes on without us, or did for a while."""
        told = await self._host.daemon.quick(lambda client: client.inspect_container(self.mark.container))
        if (began := state_of(told["State"]).started_at) is not None:
            self._since = clock.monotonic() - (clock.now() - began).total_seconds()
            self._changed.set()
        await self._output.follow_again()

    # --- its end, when it is asked for ---

    def end_by(self, cause: Cause, grace_s: float) -> None:
        """Have it ended; who decides first gives the cause, who is in more of a hurry the time."""
        kill_at = clock.now().timestamp() + grace_s
        if self._ending is not None:
            cause, kill_at = self._ending.cause, min(kill_at, self._ending.kill_at)
        self._ending = Ending(cause, kill_at)
        self._changed.set()

    async def keep_ending(self) -> None:
        """Make the decision safe."""
        if (ending := self._ending) is not None:
            await self._host.daemon.aside(lambda: self._host.records.keep_ending(self.run_id, ending))

    async def enforce(self) -> None:
        """Wait until it has to end, ask it to, and make it."""
        while self._ending is None:
            cause, left = self._due()
            if left is not None and left <= 0:
                # A lease gives no grace: the next attempt may begin soon.
                self.end_by(cause, 0.0 if cause is Cause.LEASE else self._host.grace_s)
            else:
                self._changed.clear()
                await self._pause(left)
        await self.keep_ending()
        if self._until_kill() > 0:
            await self._signal("SIGTERM")
        while (left := self._until_kill()) > 0:
            self._changed.clear()
            await self._pause(left)
        while True:  # the end of this task is the end of the run
            await self._signal("SIGKILL")
            await asyncio.sleep(_AGAIN_S)

    async def _pause(self, seconds: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _due(self) -> tuple[Cause, float | None]:
        """Return what ends it next, and in how many seconds."""
        dues: list[tuple[float, Cause]] = []
        if self.mark.timeout_s is not None:
            dues.append((self._since + self.mark.timeout_s, Cause.TIMEOUT))
        if self.lease_until is not None:
            dues.append((self.lease_until, Cause.LEASE))
        due, cause = min(dues, default=(None, Cause.TIMEOUT))
        return cause, None if due is None else due - clock.monotonic()

    def _until_kill(self) -> float:
        left = 0.0 if self._ending is None else self._ending.kill_at - clock.now().timestamp()
        return left if self.lease_until is None else min(left, self.lease_until - clock.monotonic())

    async def _signal(self, name: str) -> None:
        """Signal it, as soon as the daemon answers; one that is not running needs none."""
        while True:
            try:
                await self._host.daemon.quick(lambda client: client.kill(self.mark.container, signal=name))
            except Unavailable:
                await asyncio.sleep(_AGAIN_S)
            except Refused:
                return
            else:
                return

    # --- its end, when it has come ---

    async def end(self, exit_code: int | None, nanoseconds: int | None) -> End:
        """Return how it ended, its output written; raises `Unavailable`. What was heard of it may spare a question."""
        state = self._heard_state(exit_code, nanoseconds) or await self._asked_state()
        if state is None:
            return lost("its container is gone", _moment(self.mark.started_at))
        cause = self._asked(state)
        doubt = ""
        if cause is None and not state.oom_killed:
            doubt = await self._doubt(state, heard=exit_code is not None)
            if not doubt and self._was_alone and self._overran(state):
                cause = Cause.TIMEOUT
        peak = self.mark.memory if self._is_oom or state.oom_killed else 0
        await self._output.finish()
        end = end_of(state, cause, doubt=doubt, peak=peak or self._peak, cpu_s=self._cpu_s)
        if end.exit_code in NOT_EXECUTED and not end.message:
            return replace(end, message=await self._output.not_executed())
        return end

    def _heard_state(self, exit_code: int | None, nanoseconds: int | None) -> State | None:
        """Return the state without asking, where all was heard and nothing has to be looked into."""
        if exit_code != 0 or self._began is None or nanoseconds is None:
            return None
        return State(0, oom_killed=False, started_at=self._began, stopped_at=_at(nanoseconds))

    async def _asked_state(self) -> State | None:
        try:
            told = await self._host.daemon.quick(lambda client: client.inspect_container(self.mark.container))
        except Refused as error:
            if error.http_status == _ABSENT:
                return None
            raise
        return state_of(told["State"])

    def _asked(self, state: State) -> Cause | None:
        """Return why it was ended, if it was: the watchdog may have been faster than we."""
        if self._ending is not None:
            return self._ending.cause
        return Cause.LEASE if self.has_lapsed and state.exit_code == _KILLED else None

    def _overran(self, state: State) -> bool:
        """Tell whether it ended by itself, but after its time was over."""
        if self.mark.timeout_s is None or state.started_at is None or state.stopped_at is None:
            return False
        return (state.stopped_at - state.started_at).total_seconds() > self.mark.timeout_s

    async def _doubt(self, state: State, *, heard: bool) -> str:
        """Return why the exit code is not the application's, empty where it is. `heard`: the daemon told of its end."""
        if state.exit_code != 0:
            return _TAKEN_DOWN if await self._went_down(state) else ""
        if self._was_signalled:
            return _SIGNALLED
        if heard and not self._output.is_pieced:
            return ""
        actions = await self._remembered()
        if "kill" in actions:
            return _SIGNALLED
        return "" if "die" in actions else _NOT_SEEN

    async def _remembered(self) -> set[str]:
        """Return what the daemon remembers to have happened to it; one that was started later remembers nothing."""
        since, until = int(self.mark.started_at) - _CLOCKS_S, int(clock.now().timestamp()) + _CLOCKS_S
        filters = {"container": self.mark.container, "event": ["kill", "die"]}
        told = await self._host.daemon.slow(
            lambda client: list(client.events(since=since, until=until, filters=filters, decode=True))
        )
        return {str(each["Action"]) for each in told}

    async def _went_down(self, state: State) -> bool:
        """Tell whether the daemon took it down: then what lent its network, and never ends, has ended, too."""
        if self._output.is_pieced and state.exit_code == _UNKNOWN:
            return True
        if not self.mark.network:
            return self._output.is_pieced and state.exit_code in _CUT_OFF
        try:
            told: Any = await self._host.daemon.quick(lambda client: client.inspect_container(self.mark.network))
        except Refused:
            return True
        return not told["State"]["Running"]


def _at(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
