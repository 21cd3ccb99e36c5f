"""The GPUs of this host. A thread looks at them again and again, since the driver may keep whoever asks for ever."""

import asyncio
import ctypes
import threading
from collections.abc import Callable, Collection
from typing import Protocol, Self

from gurney import clock, telemetry
from gurney.model.resources import Gpu
from gurney.settings import Settings
from services.agent import gpu_readings
from services.agent.gpu_readings import FAILING, GONE, LOST, OK, SILENT, NoGpusError, Reading

NONE = "none"
#: Seconds that the first look may take before the agent goes on without.
FIRST_S = 5.0
#: Seconds that a look may take for which somebody waits.
FRESH_S = 2.0
#: Seconds after which a look that has not come back is told of.
SILENT_AFTER_S = 10.0
#: Seconds for which a GPU is to be gone before what runs on it is ended.
GONE_AFTER_S = 3.0
#: Seconds between two looks while runs that have GPUs are measured.
MEASURING_S = 1.0
#: Seconds between two looks for a driver that was not there.
ABSENT_S = 60.0
LIBRARY = "libnvidia-ml.so.1"
_NO_ANSWER = "the NVIDIA driver does not answer"

_log = telemetry.log("gpus")


class Source(Protocol):
    """Where the thread looks. Blocks; raises `NoGpusError` where there are none to look at; all else is a fault."""

    def look(self) -> Reading: ...

    def close(self) -> None: ...


class NvmlSource:
    """The library, which is not loaded where there is none."""

    def __init__(self) -> None:
        self._nvml: Source | None = None

    def look(self) -> Reading:
        if self._nvml is None:
            try:
                ctypes.CDLL(LIBRARY)
            except OSError as error:
                raise NoGpusError(str(error)) from error
            from services.agent.nvml import Nvml

            self._nvml = Nvml()
        return self._nvml.look()

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.close()


class Gpus:
    """A context: inside, it knows the host's GPUs. What they are on paper only is known at once."""

    def __init__(self, settings: Settings, source: Callable[[], Source] = NvmlSource) -> None:
        self._every = settings.heartbeat_interval
        self._source = source
        self.simulated = settings.gpus not in {None, NONE}
        self._is_asked = settings.gpus is None
        self._known = gpu_readings.described(settings.gpus or "", settings.node) if self.simulated else ()
        self._reading: Reading | None = None
        self._fault: str | None = None
        #: When the look began that is under way, by the monotonic clock; None: none is.
        self._looking_since: float | None = None
        #: When the last look began that has come back, by the monotonic clock.
        self._seen_from = 0.0
        self._others: dict[str, int] = {}
        #: When the last run ended that had a GPU, by UUID, by the monotonic clock.
        self._let_go: dict[str, float] = {}
        self._measuring = False
        self._seen = threading.Event()
        self._wake = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._told_absence = False
        #: Set after the next look that begins.
        self._awaited: list[threading.Event] = []

    async def __aenter__(self) -> Self:
        if self._is_asked:
            self._thread = threading.Thread(target=self._watch, name="gpus", daemon=True)
            self._thread.start()
            await asyncio.to_thread(self._seen.wait, FIRST_S)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, MEASURING_S)  # one that hangs is left behind

    # --- what is known ---

    def now(self, held: Collection[str]) -> tuple[Gpu, ...]:
        """Return the GPUs as last seen; `held`: the UUIDs of those that live runs have."""
        seen_from = self._seen_from  # before what was seen
        gpus = self._current
        ours = {*held, *(uuid for uuid, since in self._let_go.items() if since > seen_from)}
        self._others = {gpu.uuid: self.others(gpu.uuid) if gpu.uuid in ours else gpu.used for gpu in gpus}
        return tuple(gpu.but(others=min(gpu.used, self._others[gpu.uuid])) for gpu in gpus)

    def let_go(self, uuids: Collection[str]) -> None:
        """Note that a run has ended that had these GPUs: looks that began before have seen what it used."""
        self._let_go.update(dict.fromkeys(uuids, clock.monotonic()))

    def others(self, uuid: str) -> int:
        """Return the bytes that were in use there when no run had it."""
        return self._others.get(uuid, 0)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of each GPU that is known."""
        return {gpu.uuid: gpu.memory for gpu in self._known}

    def unfit(self, uuids: Collection[str]) -> dict[str, str]:
        """Return those of these GPUs on which nothing can run now, and why."""
        health = {gpu.uuid: gpu.health for gpu in self._current}
        return {uuid: health.get(uuid, LOST) for uuid in uuids if health.get(uuid) != OK}

    async def gone(self, uuids: Collection[str]) -> None:
        """Return when one of these GPUs has been gone for a while: what runs there may hang for ever."""
        since: float | None = None
        while since is None or clock.monotonic() - since < GONE_AFTER_S:
            await asyncio.sleep(MEASURING_S)
            is_gone = not GONE.isdisjoint(self.unfit(uuids).values())
            since = (since or clock.monotonic()) if is_gone else None

    async def look_again(self) -> None:
        """Return when a look is complete that begins now; one that takes too long is not waited for."""
        if self._thread is not None:
            seen = threading.Event()
            self._awaited.append(seen)
            self._wake.set()
            await asyncio.to_thread(seen.wait, FRESH_S)

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with the GPUs, beside what each says of itself."""
        told = _NO_ANSWER if self._is_silent else self._fault
        return (*((told,) if told else ()), *(self._reading.faults if self._reading else ()))

    @property
    def _current(self) -> tuple[Gpu, ...]:
        return gpu_readings.ailing(self._known, SILENT) if self._is_silent else self._known

    @property
    def _is_silent(self) -> bool:
        since = self._looking_since
        return since is not None and clock.monotonic() - since > SILENT_AFTER_S

    # --- what is measured ---

    def measure(self, *, on: bool) -> None:
        """Look more often, or not."""
        if on and not self._measuring:
            self._wake.set()
        self._measuring = on

    @property
    def reading(self) -> Reading | None:
        """What the last look has seen; None: there was none."""
        return self._reading

    # --- the thread ---

    def _watch(self) -> None:
        source = self._source()
        while not self._ended:
            self._looking_since = clock.monotonic()
            awaited, self._awaited = self._awaited, []
            pause = self._look(source)
            self._looking_since = None
            for seen in (self._seen, *awaited):
                seen.set()
            self._wake.wait(pause)
            self._wake.clear()
        source.close()

    def _look(self, source: Source) -> float:
        """Look once; return the seconds until the next time."""
        try:
            reading = source.look()
        except NoGpusError as error:
            if not self._known:
                self._fault = None
                self._tell_absence()
                return ABSENT_S
            self._fail(error)
        except Exception as error:  # whatever it is: the next look is the remedy
            self._fail(error)
        else:
            self._known = gpu_readings.inventory(self._known, reading)
            self._reading, self._fault = reading, None
            self._seen_from = self._looking_since or 0.0  # last: who sees it sees what was seen
        return MEASURING_S if self._measuring else self._every

    def _fail(self, error: Exception) -> None:
        fault = f"the NVIDIA driver fails: {error}"
        if fault != self._fault:
            _log.warning("the GPU driver fails", error=error)
        self._known, self._fault = gpu_readings.ailing(self._known, FAILING), fault

    def _tell_absence(self) -> None:
        if not self._told_absence:
            self._told_absence = True
            _log.info("this host has no GPU, or no driver for it")
