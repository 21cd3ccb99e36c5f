"""The port `runtime`: runs the applications of one host, one container or supervised process per run.

Promises. `start` begins a run at most once, whatever crashes: an exclusive mark is made before the application, and who
finds it does not start. Runs outlive the caller; after a restart `runs` lists every run that was not forgotten, and its
end is found there. An application whose mark has neither process nor end was cut off by the host: cause `lost`.
A lease is watched over by something apart from the caller, which outlives it: a run whose lease has lapsed is killed at
once, also when the caller is frozen, killed or cut off, and what has lapsed cannot be renewed.
Times are wall clock UTC; durations in seconds by the monotonic clock; memory in bytes; cpu in cores.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class Cause(StrEnum):
    """Why an application is no longer running."""

    EXITED = "exited"  #: by itself, with an exit code or by a signal of its own
    TIMEOUT = "timeout"  #: ended because its time was over
    MEMORY = "memory"  #: ended because it went past its memory
    LEASE = "lease"  #: ended because the node's lease lapsed
    STOPPED = "stopped"  #: ended because `stop` asked for it
    LOST = "lost"  #: nobody knows: mark without process and without end
    NOT_STARTED = "not_started"  #: it never began: bad command, no room on disk; `message` says why


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything a runtime needs to start one attempt of a job."""

    run_id: str
    job_id: str
    attempt: int
    node: str
    urn: str
    digest: str
    #: `monai`, `holoscan` or `supplied`: decides the names of the environment variables.
    generation: str
    #: An argument list.
    command: tuple[str, ...]
    #: The manifest's environment, before the paths of this run are laid over it.
    environment: Mapping[str, str]
    working_directory: str | None
    #: Where container runtimes mount input and output; the process runtime passes host folders instead.
    input_path: str
    output_path: str
    #: Host folders: the staged payload (read-only for the run) and an empty folder for results.
    input_dir: Path
    output_dir: Path
    cpu: float
    memory: int
    #: What the MAP brings along, read-only as the input, and where container runtimes mount it; None: nothing.
    content_dir: Path | None = None
    content_path: str | None = None
    shared_memory: int | None = None
    #: UUIDs of the placed GPUs; empty: none may be visible.
    gpus: tuple[str, ...] = ()
    #: They are there on paper only: the run is told their UUIDs, and the host is asked for nothing.
    gpus_simulated: bool = False
    timeout_s: float | None = None
    #: Until when the run may live unless `lease` gives it longer, by this host's monotonic clock. None: no lease.
    lease_until: float | None = None
    #: Runs of one project may get what another run of it had, such as a network namespace.
    project: str = "default"
    #: `compatible`: the root file system may be written, and capabilities are those of the runtime's default.
    hardening: str = "strict"
    #: A network by which the outside can be reached, instead of none.
    network: bool = False
    #: Extra variables such as TRACEPARENT.
    extra_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended."""

    cause: Cause
    #: 0 to 255; 128 + n for signal n; None when unknown.
    exit_code: int | None
    started_at: datetime | None
    stopped_at: datetime | None
    #: Seconds between start and stop by the monotonic clock; None when unknown.
    duration_s: float | None
    #: Highest resident memory seen, bytes; None when never sampled.
    peak_memory: int | None = None
    #: Processor time of all its processes in seconds; None when never measured.
    cpu_s: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """A run as the runtime sees it now."""

    run_id: str
    #: None while it is running.
    end: End | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What registration reads of a MAP: a digest that pins it and its raw manifests (path -> bytes).

    In an image the path tells the generation (`/etc/holoscan/app.json`, or `/var/run/holoscan/export/config/app.json`
    where the image exported it); a folder MAP has `app.json` and `pkg.json`.
    """

    digest: str
    manifests: Mapping[str, bytes]
    #: The image's own entrypoint and command; nothing for a folder.
    command: tuple[str, ...] = ()


Progress = Callable[[str, int, int | None], None]


def silent(phase: str, done: int, total: int | None) -> None:
    """Be told of progress, and do nothing."""


class Runtime(Protocol):
    """One per host and kind; `kinds` says which URNs it runs."""

    #: What people call it.
    name: str
    #: URN prefixes, for example `urn:gurney:dir:` or `urn:oci:`.
    kinds: tuple[str, ...]

    @property
    def fault(self) -> str | None:
        """Why no run can be begun now, in one line for people; None: it can."""

    async def open(self) -> None:
        """Connect, start what has to be resident, find runs that are still there."""

    async def close(self) -> None:
        """Let go; runs stay."""

    async def inspect(self, urn: str, *, described: bool = False, progress: Progress = silent) -> Inspection:
        """Pin and read a MAP, running none of its code where it has manifests; raises `MapUnreadable`, which says why.

        `described`: somebody else says what the MAP does, so that it needs no manifests. `progress` is told what is
        under way (`pulling`), how much of it is done and of how much, in bytes; from any thread.
        """

    async def available(self, urn: str, digest: str) -> None:
        """Make the pinned MAP present on this host, for a run that begins soon; raises `ImageUnavailable`."""

    async def held(self) -> Sequence[str]:
        """Return by which digests MAPs that are on this host may be pinned; the last used first, as far as is known.

        Raises `Unavailable`.
        """

    async def copies(self) -> Collection[str]:
        """Return the digests of the MAPs that are kept here until `let_go`: none where what is kept has a bound."""

    async def let_go(self, digest: str, idle_since: float) -> bool:
        """Remove what is kept of a MAP, unless somebody came for it since then; tell whether it went.

        `idle_since`: by the monotonic clock. Nobody may let go of what a run uses, which is the caller's to know. A
        crash in the middle leaves it whole or not there.
        """

    async def start(self, spec: RunSpec) -> None:
        """Begin the run; returns when it is begun or known to have begun before. A failure to begin is an `End`."""

    async def stop(self, run_id: str, grace_s: float = 10.0) -> None:
        """Ask the run to end: SIGTERM, and SIGKILL after the grace. Unknown or ended runs are no error."""

    async def lease(self, run_ids: Collection[str], until: float) -> None:
        """Let these runs live until then, by this host's monotonic clock; never less than what they were given before.

        A run that had no lease has one from now on. Unknown and ended runs are no error. One whose lease has lapsed is
        not saved: it ends with the cause `LEASE`, as does one that is begun when its lease has lapsed.
        """

    async def owners(self, pids: Collection[int]) -> Mapping[int, str]:
        """Return the live run of each of these processes of the host that is part of one, as far as can be told.

        Raises `Unavailable`.
        """

    async def may_open_gpus(self, run_id: str) -> bool | None:
        """Tell whether a live run may still open the devices of its GPUs; None: that cannot be told.

        What it has opened before goes on working either way. Raises `Unavailable`.
        """

    async def runs(self) -> list[Observed]:
        """List all runs that were started and not forgotten."""

    def ends(self) -> AsyncIterator[Observed]:
        """Yield each run as it ends, from this call on, for as long as the runtime is open; each end once."""

    def log_path(self, run_id: str) -> Path:
        """Return the file to which the merged output of the run is being written, in order."""

    async def forget(self, run_id: str) -> None:
        """Remove mark, end and log of an ended run; unknown runs are no error, a live one is a `Conflict`."""
