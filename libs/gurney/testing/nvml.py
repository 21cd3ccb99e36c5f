"""A stand-in for NVIDIA's management library, built by the C compiler: a test says what GPUs there are.

`nvml.c` has the part of the library that the agent uses. Whether it is as the real one, real hardware alone tells.
"""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
#: Names the file in which the state stands.
VARIABLE = "GURNEY_FAKE_NVML"
LIBRARY = "libnvidia-ml.so.1"
GIB = 1 << 30
#: Codes of NVML.
RESET_REQUIRED, LOST, MISMATCH = 16, 15, 18


def compiler() -> str | None:
    """Return the C compiler of this machine."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def missing() -> str | None:
    """Say what keeps tests from it, None when nothing does."""
    if (cc := compiler()) is None:
        return "no C compiler on PATH"
    tried = subprocess.run([cc, "-fsyntax-only", str(SOURCE)], capture_output=True, timeout=60, check=False)
    return None if tried.returncode == 0 else f"{cc} has not what it needs: libc6-dev, as Debian calls it"


def build(folder: Path, *flags: str) -> Path:
    """Compile it; returns the library, which lies alone in its folder. `-DOLD`: as drivers of 2020 have it."""
    library = folder / LIBRARY
    command = [compiler() or "cc", "-shared", "-fPIC", *flags, "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return library


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG instance. Memory in bytes."""

    uuid: str
    memory: int = 10 * GIB
    used: int = 0
    name: str = "NVIDIA A100 MIG 1g.10gb"


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU. Memory in bytes, `busy` in percent, `error`: the code by which every question is answered."""

    uuid: str
    memory: int = 80 * GIB
    used: int = 0
    #: What the driver keeps for itself.
    reserved: int = 0
    name: str = "NVIDIA A100 80GB PCIe"
    capability: str = "8.0"
    busy: int = 0
    error: int = 0
    #: Memory errors that could not be corrected.
    ecc: int = 0
    #: The last critical error that the driver has reported.
    xid: int = 0
    #: None: not divided.
    instances: Sequence[Instance] | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """A process that computes there; `held` in bytes, -1: not told; `busy` in percent.

    -2: there is no such process, but a sample of it with the time stamp of the last day of all, as some drivers have.
    """

    uuid: str
    pid: int
    held: int
    busy: int = 0


class FakeNvml:
    """One library with one state."""

    def __init__(self, library: Path, state: Path) -> None:
        self.library = library
        self.state = state
        self.says()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs that is to load it instead of the host's own."""
        return {"LD_LIBRARY_PATH": str(self.library.parent), VARIABLE: str(self.state)}

    def says(
        self, *cards: Card, processes: Iterable[Process] = (), init: int = 0, hang: str = "-", driver: str = "570.86"
    ) -> None:
        """Say from now on that there are these GPUs. `init`: the code of its beginning; `hang`: never returns."""
        lines = [f"init {init}", f"hang {hang}", f"driver {driver}"]
        for number, card in enumerate(cards):
            divided = int(card.instances is not None)
            rest = f"{card.capability} {card.busy} {card.error} {card.ecc} {divided} {card.xid}"
            lines.append(f"device {number} -1 {card.uuid} {card.memory} {card.used} {card.reserved} {rest} {card.name}")
            for place, each in enumerate(card.instances or ()):
                lines.append(f"device {number} {place} {each.uuid} {each.memory} {each.used} 0 {rest} {each.name}")
        lines += [f"process {each.uuid} {each.pid} {each.held} {each.busy}" for each in processes]
        draft = self.state.with_suffix(".tmp")
        draft.write_text("\n".join(lines) + "\n")
        draft.replace(self.state)  # as a whole, since it may be read at any time

    def has_no_driver(self) -> None:
        """Say from now on that no driver is loaded."""
        self.state.unlink(missing_ok=True)
