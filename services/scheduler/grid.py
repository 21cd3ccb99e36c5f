"""The nodes as arrays, a row for each, kept between decisions. Pure.

A row is derived from its node whenever that changes, never counted up or down. A log tells which rows have changed, so
that what was found out about the others stays known.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.scheduler.demand import Typical
from services.scheduler.fragments import TOGETHER, Floats, Fragments, Use
from services.scheduler.holders import Holders
from services.scheduler.shape import Device, Shape

#: Runtimes and labels: what a shape may ask of a node besides room.
Home = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]
Rows = npt.NDArray[np.intp]

#: States of a node whose worth is remembered: what a plan tried is mostly there a moment later.
KNOWN = 4096
#: Rows that are weighed at a time: what that needs grows with GPUs and typical tasks.
MANY = 1024


#: How nodes stand; `NOWHERE`: there is no such node.
READY, LOST, DRAINING, SILENT, NOWHERE = range(5)


class Room(NamedTuple):
    """What a node has free. Memory in bytes, cpu in thousandths of a core."""

    #: Whether anything may be placed there now: `READY`, or why not.
    standing: int
    home: Home
    cpu: int
    memory: int
    #: Each healthy GPU, and what is free of it in MiB.
    gpus: tuple[tuple[Device, int], ...]
    #: Cpu, memory and GPUs of the whole node.
    size: tuple[int, int, int]
    #: What of it live placements have; GPUs of which they have something. What else is not free is kept for somebody.
    used: tuple[int, int, int] = (0, 0, 0)


class Load(NamedTuple):
    """What a cluster has, and what of it is in use: cpu, memory, GPUs."""

    capacity: tuple[int, int, int]
    used: tuple[int, int, int]


NO_ROOM = Room(standing=NOWHERE, home=((), ()), cpu=0, memory=0, gpus=(), size=(0, 0, 0))


def runs(home: Home, shape: Shape) -> bool:
    """Tell whether nodes of a kind run a shape, room apart."""
    kinds, labels = home
    return shape.urn.startswith(kinds) and set(shape.labels) <= set(labels)


class Grid:
    """The rows."""

    def __init__(self, typical: Sequence[Typical] = (), together: float = TOGETHER) -> None:
        self._together = together
        self.fragments = Fragments(typical, together)
        self.names: list[str] = []
        self.holders = Holders()
        self._row: dict[str, int] = {}
        self._unused: list[int] = []
        self._rooms: list[Room] = []
        #: Of each row the most MiB that are free of a GPU, and how many GPUs are free as a whole.
        self._most: list[int] = []
        self._whole: list[int] = []
        #: Kinds of nodes and of GPUs, numbered as they turned up.
        self.homes: dict[Home, int] = {}
        self.devices: dict[Device, int] = {}
        #: Counts the changes of what there is for jobs if nothing is in use.
        self.makes = 0
        #: Rows in the order of their changes, from change number `_before` on.
        self._log: list[int] = []
        self._before = 0
        #: Most cpu, memory and GPUs of a node.
        self.largest = np.ones(3, dtype=np.int64)
        self._states: dict[Room, int] = {}
        self._weighed: dict[int, tuple[Use, Floats]] = {}
        self._shape_arrays(0, 0)

    def _shape_arrays(self, rows: int, width: int) -> None:
        self.standing = np.full(rows, NOWHERE, dtype=np.int8)
        self.home = np.zeros(rows, dtype=np.int64)
        self.cpu = np.zeros(rows, dtype=np.int64)
        self.memory = np.zeros(rows, dtype=np.int64)
        #: Kind of each GPU, -1: there is none.
        self.kind = np.full((rows, width), -1, dtype=np.int64)
        #: MiB.
        self.free = np.zeros((rows, width), dtype=np.int64)
        #: GPUs that are free, parts of them counted as such.
        self.idle = np.zeros(rows)
        #: Cpu, memory, GPUs.
        self.size = np.zeros((rows, 3), dtype=np.int64)
        self._used = np.zeros((rows, 3), dtype=np.int64)
        self._use = self.fragments.of_no_use(rows)
        self._usable = np.zeros(rows)
        #: Rows of the same number are equal in all that counts.
        self._state = np.zeros(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._row)

    def put(self, name: str, room: Room) -> None:
        """Derive the row of a node."""
        self.put_all({name: room})

    def put_all(self, rooms: Mapping[str, Room]) -> None:
        """Derive the rows of nodes."""
        if not rooms:
            return
        self._make_room(rooms)
        resized = any(self._rooms[self._row[name]].size != room.size for name, room in rooms.items())
        rows = np.array([self._row[name] for name in rooms], dtype=np.intp)
        for row, room in zip(rows.tolist(), rooms.values(), strict=True):
            self._set(row, room)
        self._weigh(rows)
        self._note(rows.tolist())
        largest = self.size.max(axis=0, initial=1) if resized else self.largest
        if (largest != self.largest).any():
            self.largest = largest
            self._all_changed()

    def expect(self, typical: Sequence[Typical]) -> None:
        """Measure what GPUs are of use for against other tasks from now on."""
        self.fragments = Fragments(typical, self._together)
        for device in self.devices:
            self.fragments.learn_device(device)
        for home in self.homes:
            self.fragments.learn_home([runs(home, shape) for shape in self.fragments.shapes])
        self._weighed = {}
        self._use = self.fragments.of_no_use(len(self.cpu))
        self._weigh(np.arange(len(self.names)))
        self._all_changed()

    def hold(self, name: str, things: tuple[str, ...]) -> None:
        """Note what a node holds of MAPs. It says nothing about room: no row changes."""
        self.holders.put(self._row[name], things)

    def drop(self, name: str) -> None:
        """Forget a node."""
        self.put(name, NO_ROOM)
        self.hold(name, ())
        row = self._row.pop(name)
        self.names[row] = ""
        self._unused.append(row)

    @property
    def changes(self) -> int:
        """How many rows have changed so far."""
        return self._before + len(self._log)

    def changed_since(self, changes: int) -> set[int] | None:
        """Return the rows that have changed since there were so many changes; None: any may have."""
        return set(self._log[changes - self._before :]) if changes >= self._before else None

    def is_short(self, row: int, shape: Shape) -> bool:
        """Tell at a glance that a row has no room; where it says no, there may be none nevertheless."""
        room = self._rooms[row]
        return (
            room.standing != READY
            or room.cpu < shape.cpu
            or room.memory < shape.memory
            or (self._most[row] < shape.gpu_share if shape.gpu_share else self._whole[row] < shape.gpus)
        )

    @property
    def with_gpus(self) -> npt.NDArray[np.bool_]:
        """Which rows are of nodes that have GPUs, whatever they are like."""
        gpus: npt.NDArray[np.bool_] = self.size[:, 2] > 0
        return gpus

    @property
    def load(self) -> Load:
        """What all nodes have together, and what of it is in use."""
        (cpu, memory, gpus), used = self.size.sum(axis=0).tolist(), self._used.sum(axis=0).tolist()
        return Load((cpu, memory, gpus), tuple(used))

    def room(self, name: str) -> Room | None:
        return self._rooms[self._row[name]] if name in self._row else None

    def are(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Tell which rows are of these nodes."""
        found = np.zeros(len(self.cpu), dtype=np.bool_)
        found[[self._row[name] for name in names if name in self._row]] = True
        return found

    def _set(self, row: int, room: Room) -> None:
        self.makes += _make_of(room) != _make_of(self._rooms[row])
        self._rooms[row] = room
        self.standing[row] = room.standing
        self.home[row] = self._home_of(room.home)
        self.cpu[row] = room.cpu
        self.memory[row] = room.memory
        self.kind[row] = -1
        self.free[row] = 0
        idle = 0.0
        for place, (device, free) in enumerate(room.gpus):
            self.kind[row, place] = self._kind_of(device)
            self.free[row, place] = free
            idle += free / device.mib
        self.idle[row] = idle
        self._most[row] = max((free for _, free in room.gpus), default=0)
        self._whole[row] = sum(free == device.mib for device, free in room.gpus)
        self.size[row] = room.size
        self._used[row] = room.used
        self._state[row] = self._states.setdefault(_state_of(room), len(self._states))

    def _weigh(self, rows: Rows) -> None:
        """Find out what the GPUs of rows are of use for; of a state that was there a moment ago it is known."""
        if len(rows) == 1:
            state = int(self._state[rows[0]])
            if (known := self._weighed.get(state)) is None:
                known = self._weighed[state] = self._use_of(rows)
                if len(self._weighed) > KNOWN:
                    del self._weighed[next(iter(self._weighed))]
            self._learned(rows, *known)
            return
        _, first, which = np.unique(self._state[rows], return_index=True, return_inverse=True)
        for start in range(0, len(first), MANY):
            use, usable = self._use_of(rows[first[start : start + MANY]])
            some = np.flatnonzero((which >= start) & (which < start + MANY))
            part = which[some] - start
            self._learned(rows[some], use.at(part), usable[part])

    def _use_of(self, rows: Rows) -> tuple[Use, Floats]:
        use = self.fragments.use(self.kind[rows], self.free[rows])
        use = Use(*(each.sum(axis=1) for each in use))
        return use, self.fragments.usable(self.cpu[rows], self.memory[rows], self.home[rows], use)

    def _learned(self, rows: Rows, use: Use, usable: Floats) -> None:
        for kept, found in zip(self._use, use, strict=True):
            kept[rows] = found
        self._usable[rows] = usable

    def _note(self, rows: Sequence[int]) -> None:
        self._log += rows
        if len(self._log) > 4 * len(self.names) + 1000:
            self._before += len(self._log)
            self._log = []
        if len(self._states) > 8 * len(self.names) + 1000:
            self._states, self._weighed = {}, {}
            for row, room in enumerate(self._rooms):
                self._state[row] = self._states.setdefault(_state_of(room), len(self._states))

    def _all_changed(self) -> None:
        self._before += len(self._log) + 1
        self._log = []

    def _make_room(self, rooms: Mapping[str, Room]) -> None:
        """Have rows for these nodes, wide enough for their GPUs."""
        for name in rooms:
            if name not in self._row:
                self._row[name] = row = self._unused.pop() if self._unused else len(self.names)
                if row == len(self.names):
                    self.names.append("")
                    self._rooms.append(NO_ROOM)
                    self._most.append(0)
                    self._whole.append(0)
                self.names[row] = name
        width = max((len(room.gpus) for room in rooms.values()), default=0)
        if len(self.names) > len(self.cpu) or width > self.free.shape[1]:
            self._grow(width)

    def _grow(self, width: int) -> None:
        rows, width = len(self.cpu), max(width, self.free.shape[1])
        rows = rows if len(self.names) <= rows else max(len(self.names), 2 * rows)
        self._shape_arrays(rows, width)
        self._states, self._weighed = {}, {}
        self._all_changed()
        for row, room in enumerate(self._rooms):
            self._set(row, room)
        self._weigh(np.arange(len(self.names)))

    def _home_of(self, home: Home) -> int:
        if home not in self.homes:
            self.homes[home] = len(self.homes)
            self.fragments.learn_home([runs(home, shape) for shape in self.fragments.shapes])
        return self.homes[home]

    def _kind_of(self, device: Device) -> int:
        if device not in self.devices:
            self.devices[device] = len(self.devices)
            self.fragments.learn_device(device)
        return self.devices[device]

    def fragmentation(self) -> float:
        """Return the share of what is free of all GPUs that typical tasks cannot use."""
        idle = self.idle.sum()
        return float(1 - self._usable.sum() / idle) if idle else 0.0


def _make_of(room: Room) -> tuple[object, ...]:
    """Return what a node has for jobs if nothing is in use."""
    return room.standing, room.home, room.size, [device for device, _ in room.gpus]


def _state_of(room: Room) -> Room:
    """Return what counts of a room: which of a node's GPUs is which does not."""
    return room._replace(gpus=tuple(sorted(room.gpus)), size=(0, 0, 0), used=(0, 0, 0))
