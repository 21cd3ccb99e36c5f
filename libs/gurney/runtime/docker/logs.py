"""Writes what containers say into files, on one thread for all of them.

The daemon sends frames: a byte for the stream, three empty ones, four for the length. Each stream keeps its order; how
the two lie to each other is how the daemon came to read them. A file holds all that was said at its right offset, but
disk is used for the first and the last of it alone: the middle of a long log is a hole, as nobody keeps it.
"""

import contextlib
import os
import selectors
import socket
import threading
from concurrent.futures import Future
from pathlib import Path

from gurney.runtime.holes import punch

_BLOCK = 1 << 18
_FRAME = 8


class Frames:
    """Takes the frames off a stream of bytes that is cut anywhere."""

    def __init__(self) -> None:
        self._left = 0
        self._head = b""

    def texts(self, data: bytes) -> bytes:
        """Return what was said in this piece of the stream."""
        said: list[bytes] = []
        at = 0
        while at < len(data):
            if not self._left:
                missing = _FRAME - len(self._head)
                self._head += data[at : at + missing]
                at += missing
                if len(self._head) < _FRAME:
                    break
                self._left = int.from_bytes(self._head[4:], "big")
                self._head = b""
            taken = min(self._left, len(data) - at)
            said.append(data[at : at + taken])
            at += taken
            self._left -= taken
        return b"".join(said)


class LogFile:
    """One log that grows."""

    def __init__(self, path: Path) -> None:
        """Begin it anew."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._size = 0
        self._hole = 0
        self.is_whole = True

    def write(self, data: bytes) -> None:
        """Add to it. What a full disk does not take is left out: the application must not stand still for it."""
        try:
            view = memoryview(data)
            while view:
                written = os.write(self._fd, view)
                view = view[written:]
                self._size += written
        except OSError:
            self.is_whole = False
        self._hole = punch(self._fd, self._size, self._hole)

    def close(self) -> None:
        os.close(self._fd)


class _Reader:
    def __init__(self, connection: socket.socket, path: Path) -> None:
        self.connection = connection
        self.frames = Frames()
        self.file = LogFile(path)
        self.ended: Future[bool] = Future()
        self.ended.set_running_or_notify_cancel()  # who waits for it no longer takes nothing away

    def read(self) -> bool:
        """Write what has come; False at the end."""
        try:
            data = self.connection.recv(_BLOCK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self.file.write(self.frames.texts(data))
        return bool(data)

    def end(self) -> None:
        self.connection.close()
        self.file.close()
        self.ended.set_result(self.file.is_whole)


class LogPump:
    """The thread, and who asks it to follow; what it holds is there from `open` to `close`."""

    _selector: selectors.BaseSelector
    _wake_out: socket.socket
    _wake_in: socket.socket

    def __init__(self) -> None:
        self._new: list[_Reader] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="gurney-docker-logs", daemon=True)

    def open(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.settimeout(0)
        self._wake_in.settimeout(0)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait for it: what has come by now is written."""
        self._is_closed = True
        self._wake()
        self._thread.join()
        for each in (self._selector, self._wake_out, self._wake_in):
            each.close()

    def follow(self, connection: socket.socket, path: Path) -> "Future[bool]":
        """Write what arrives into the file, anew; set at the end of it: whether it could all be written."""
        connection.settimeout(0)
        try:
            reader = _Reader(connection, path)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if self._is_over:  # a start may still be under way on a thread when all is closed
                reader.file.is_whole = False
                reader.end()
            else:
                self._new.append(reader)
                self._wake()
        return reader.ended

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake
            self._wake_in.send(b".")

    def _run(self) -> None:
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        while not self._is_closed:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake_out:
                    self._wake_out.recv(_BLOCK)
                    self._take_new()
                elif not key.data.read():
                    self._drop(key.data)
        with self._lock:
            self._is_over = True
        self._take_new()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Reader):
                self._drop(key.data)

    def _take_new(self) -> None:
        with self._lock:
            new, self._new = self._new, []
        for reader in new:
            self._selector.register(reader.connection, selectors.EVENT_READ, reader)

    def _drop(self, reader: _Reader) -> None:
        self._selector.unregister(reader.connection)
        reader.end()


def write_all(connection: socket.socket, path: Path) -> None:
    """Write what arrives until its end into the file, which appears whole. Blocks."""
    draft = path.with_suffix(".new")
    with connection, contextlib.closing(LogFile(draft)) as file:
        frames = Frames()
        while data := connection.recv(_BLOCK):
            file.write(frames.texts(data))
    draft.replace(path)
