"""The GPUs of this host as NVIDIA's management library tells them (NVML API reference). All of it blocks.

A call may never return where the driver hangs. What one GPU does not tell is left out; one that fails says so in the
reading and takes no other with it.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from statistics import fmean
from typing import Any, TypeVar

import pynvml
from pynvml import NVMLError

from gurney import clock
from gurney.model.resources import Gpu
from services.agent.gpu_readings import FAILING, LOST, OK, RESET_REQUIRED, Device, DriverError, NoGpusError, Reading

#: What the codes of NVML say of a GPU.
_HEALTH = {
    pynvml.NVML_ERROR_GPU_IS_LOST: LOST,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: RESET_REQUIRED,
}
_MEMORY = "memory_errors"
#: There is nothing to look at, and that is no fault: neither driver nor GPU.
_ABSENT = frozenset(
    {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
        pynvml.NVML_ERROR_NOT_FOUND,
    }
)
#: This kind of GPU, or of driver, does not tell it, or not to us.
_UNTOLD = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NOT_READY,
        pynvml.NVML_ERROR_INSUFFICIENT_SIZE,  # there came more processes while they were told
    }
)
#: Errors that the driver reports as critical and that an application has made itself (NVIDIA's Xid catalogue; the same
#: that the device plugin for Kubernetes passes over).
_OF_APPLICATIONS = frozenset({13, 31, 43, 45, 68, 109})

#: Per cent.
_WHOLE = 100

T = TypeVar("T")


class Nvml:
    """One per agent, used by one thread."""

    def __init__(self) -> None:
        self._is_open = False
        self._events: Any = None
        self._listened_to: set[str] = set()
        #: The critical error that a GPU has reported, by UUID: over when the driver, or we, start anew.
        self._xids: dict[str, int] = {}
        #: The UUID that was seen last at each index: one that is lost does not tell it any more.
        self._uuids: dict[int, str] = {}
        #: Up to when the use by processes was read, by UUID, in microseconds.
        self._read_until: dict[str, int] = {}

    def look(self) -> Reading:
        """Return what there is now; raises `NoGpusError`, `DriverError`."""
        self._open()
        try:
            driver, count = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetCount()
        except NVMLError as error:
            self.close()
            raise DriverError(str(error)) from error
        self._hear()
        devices: list[Device] = []
        cards: set[str] = set()
        broken: dict[str, str] = {}
        faults: list[str] = []
        for index in range(count):
            try:
                found = list(self._card(index, driver))
            except NVMLError as error:
                health = _HEALTH.get(error.value, FAILING)
                if index in self._uuids:
                    broken[self._uuids[index]] = health
                else:
                    faults.append(f"GPU {index} does not answer: {error}")
            else:
                devices += found
                cards.add(self._uuids[index])
        return Reading(clock.monotonic(), tuple(devices), frozenset(cards), broken, tuple(faults))

    def close(self) -> None:
        """Let go of the driver; the next look begins anew."""
        if self._is_open:
            self._is_open, self._events = False, None
            for kept in (self._listened_to, self._xids, self._uuids, self._read_until):
                kept.clear()
            with suppress(NVMLError):
                pynvml.nvmlShutdown()

    def _open(self) -> None:
        if self._is_open:
            return
        try:
            pynvml.nvmlInit()
        except NVMLError as error:
            raise (NoGpusError if error.value in _ABSENT else DriverError)(str(error)) from error
        self._is_open = True
        self._events = _told(pynvml.nvmlEventSetCreate)

    # --- one GPU ---

    def _card(self, index: int, driver: str) -> Iterator[Device]:
        """Yield what can be given to runs of a GPU: itself, or its instances where it is divided."""
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = self._uuids[index] = pynvml.nvmlDeviceGetUUID(handle)
        self._listen(uuid, handle)
        health, capability = self._health(uuid, handle), _told(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        about = {
            "health": health,
            "driver": driver,
            "compute_capability": ".".join(map(str, capability)) if capability else None,
        }
        if (_told(pynvml.nvmlDeviceGetMigMode, handle) or [0])[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            yield self._device(uuid, handle, about)
            return
        for number in range(_told(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            instance = _told(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            if instance is not None:
                yield self._device(pynvml.nvmlDeviceGetUUID(instance), instance, about | {"parent": uuid})

    def _device(self, uuid: str, handle: Any, about: dict[str, Any]) -> Device:
        memory = _told(pynvml.nvmlDeviceGetMemoryInfo, handle, version=pynvml.nvmlMemory_v2)
        if memory is None:  # an old driver
            memory = _told(pynvml.nvmlDeviceGetMemoryInfo, handle)
        processes = _processes(handle)
        rates = _told(pynvml.nvmlDeviceGetUtilizationRates, handle)
        return Device(
            gpu=Gpu(
                uuid=uuid,
                model=pynvml.nvmlDeviceGetName(handle),
                memory=memory.total if memory else 0,
                # Not `used`: drivers differ in whether what they keep for themselves is in it. No run can have that.
                used=memory.total - memory.free if memory else 0,
                **about,
            ),
            processes=processes,
            busy=None if rates is None else rates.gpu / 100,
            busy_by=self._busy_by(uuid, handle, processes),
        )

    def _busy_by(self, uuid: str, handle: Any, processes: Collection[int]) -> dict[int, float] | None:
        """Return the share of each of these processes. Others are left out: some drivers fill up with rubbish."""
        since = self._read_until.get(uuid, 0)
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, since)
        except NVMLError as error:
            if error.value in {pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS}:  # nobody has computed since
                return {}
            if error.value in _UNTOLD:
                return None
            raise
        shares: defaultdict[int, list[float]] = defaultdict(list)
        for sample in samples:
            if sample.pid in processes and sample.smUtil <= _WHOLE and sample.timeStamp > since:
                self._read_until[uuid] = max(self._read_until.get(uuid, 0), sample.timeStamp)
                shares[sample.pid].append(sample.smUtil / _WHOLE)
        return {pid: fmean(each) for pid, each in shares.items()}

    # --- health ---

    def _health(self, uuid: str, handle: Any) -> str:
        if uuid in self._xids:
            return f"xid_{self._xids[uuid]}"
        errors = _told(
            pynvml.nvmlDeviceGetTotalEccErrors,
            handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        )
        rows = _told(pynvml.nvmlDeviceGetRemappedRows, handle)
        return _MEMORY if errors or (rows and rows[3]) else OK

    def _listen(self, uuid: str, handle: Any) -> None:
        if self._events is not None and uuid not in self._listened_to:
            self._listened_to.add(uuid)
            _told(pynvml.nvmlDeviceRegisterEvents, handle, pynvml.nvmlEventTypeXidCriticalError, self._events)

    def _hear(self) -> None:
        """Take in the critical errors that were reported since the last look."""
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                uuid = pynvml.nvmlDeviceGetUUID(event.device)
            except NVMLError:  # none is left; or the GPU is lost, and says so itself
                return
            if event.eventData not in _OF_APPLICATIONS:
                self._xids[uuid] = event.eventData


def _processes(handle: Any) -> dict[int, int | None]:
    """Return the bytes that each process holds on a device."""
    found: dict[int, int | None] = {}
    running = _told(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
    if running is None:  # drivers before 510
        running = _told(pynvml.nvmlDeviceGetComputeRunningProcesses_v2, handle)
    for each in running or []:
        held = found.get(each.pid, 0)
        unknown = held is None or each.usedGpuMemory is None
        found[each.pid] = None if unknown else held + each.usedGpuMemory
    return found


def _told(ask: Callable[..., T], *arguments: Any, **more: Any) -> T | None:
    """Return the answer; None where this is not told of such a GPU."""
    try:
        return ask(*arguments, **more)
    except NVMLError as error:
        if error.value in _UNTOLD:
            return None
        raise
