"""The loop of the resident process: clients on its socket, children, time.

The protocol is one JSON object a line. A client asks `{id, do, ...}` and gets `{id, ok, ...}` or `{id, error}`; a new
client is told at once what there is (`{"runs": [[run id, end or null], ...]}`), and from then on of each end
(`{"ended": run id, "end": {...}}`).
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import sys
import time

from gurney.runtime.supervisor import records
from gurney.runtime.supervisor.keeper import Keeper
from gurney.runtime.supervisor.poller import READ, READ_WRITE, Poller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LONGEST_REQUEST = 8 << 20
_LONGEST_BACKLOG = 64 << 20
_AFTER_ERROR_S = 0.1


class Client:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.gone = False


class Server:
    def __init__(self, listening: socket.socket, idle_s: float) -> None:
        self._poller = Poller()
        self.keeper = Keeper(self._poller, self._tell_end)
        self._listening = listening
        self._clients: set[Client] = set()
        self._idle_s = idle_s
        self._idle_since = time.monotonic()
        self._leaving = False
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.settimeout(0)

    def run(self) -> None:
        """Serve until there is nothing to watch and nobody to serve."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._listening.settimeout(0)
        self._poller.watch(self._listening.fileno(), self._accept)
        self._poller.watch(self._woken.fileno(), self._wake)
        self.keeper.reap()
        while not self._may_go():
            try:
                self._turn()
            except Exception:  # whatever goes wrong with one run or client, the others still need us
                sys.excepthook(*sys.exc_info())
                time.sleep(_AFTER_ERROR_S)

    def _turn(self) -> None:
        due = self.keeper.tick()
        if not self.keeper.runs and not self._clients:
            idle = max(0.0, self._idle_since + self._idle_s - time.monotonic())
            due = idle if due is None else min(due, idle)
        self._poller.turn(due)

    def _leave(self, *_: object) -> None:
        """SIGTERM: go as soon as no run needs us."""
        self._leaving = True

    def _may_go(self) -> bool:
        if records.gone():
            self.keeper.abandon()
            return True
        if self.keeper.runs:
            self._idle_since = time.monotonic()
            return False
        if self._leaving:
            return True
        return not self._clients and time.monotonic() >= self._idle_since + self._idle_s

    def _wake(self, _: int) -> None:
        try:
            self._woken.recv(4096)
        except BlockingIOError:
            return
        self.keeper.reap()

    # Clients

    def _accept(self, _: int) -> None:
        try:
            connection, _address = self._listening.accept()
        except OSError:
            return
        connection.settimeout(0)
        client = Client(connection)
        self._clients.add(client)
        self._poller.watch(connection.fileno(), lambda events: self._serve(client, events))
        self._send(client, {"runs": list(self.keeper.listing())})

    def _serve(self, client: Client, events: int) -> None:
        if events & select.POLLOUT:
            self._flush(client)
        if events & ~select.POLLOUT:
            self._receive(client)
        if client.gone:
            self._drop(client)

    def _receive(self, client: Client) -> None:
        try:
            data = client.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.inbox += data
        *lines, rest = client.inbox.split(b"\n")
        client.inbox = bytearray(rest)
        for line in lines:
            self._answer(client, bytes(line))
        if not data or len(client.inbox) > _LONGEST_REQUEST:
            client.gone = True

    def _answer(self, client: Client, line: bytes) -> None:
        number = None
        try:
            ask = json.loads(line)
            number = ask["id"]
            self._do(client, number, ask)
        except Exception as error:  # one bad request must not end the watch over everybody's runs
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201  stderr is the log
            self._send(client, {"id": number, "error": f"{type(error).__name__}: {error}"})

    def _do(self, client: Client, number: int, ask: dict[str, Any]) -> None:
        match ask["do"]:
            case "start":
                self.keeper.start(ask, lambda told: self._send(client, {"id": number, "ok": True, **told}))
                return
            case "stop":
                self.keeper.stop(ask["run_id"], ask["grace_s"])
                told: dict[str, Any] = {}
            case "lease":
                self.keeper.lease(ask["run_ids"], ask["until"])
                told = {}
            case "forget":
                told = {"forgotten": self.keeper.forget(ask["run_id"])}
            case "list":
                told = {"runs": list(self.keeper.listing())}
            case "members":
                told = {"members": self.keeper.members()}
            case other:
                raise ValueError(f"unknown request {other!r}")
        self._send(client, {"id": number, "ok": True, **told})

    def _tell_end(self, run_id: str, end: dict[str, Any]) -> None:
        for client in list(self._clients):
            self._send(client, {"ended": run_id, "end": end})

    def _send(self, client: Client, message: dict[str, Any]) -> None:
        if client.gone:
            return
        client.outbox += json.dumps(message).encode() + b"\n"
        self._flush(client)

    def _flush(self, client: Client) -> None:
        try:
            sent = client.socket.send(client.outbox) if client.outbox else 0
            del client.outbox[:sent]
        except BlockingIOError:
            pass
        except OSError:
            client.gone = True
        if client.gone or len(client.outbox) > _LONGEST_BACKLOG:
            self._hang_up(client)
        else:
            self._poller.change(client.socket.fileno(), READ_WRITE if client.outbox else READ)

    def _hang_up(self, client: Client) -> None:
        """Send no more; the poller tells of the closed connection next, and then the client is dropped."""
        client.gone = True
        client.outbox.clear()
        with contextlib.suppress(OSError):
            client.socket.shutdown(socket.SHUT_RDWR)

    def _drop(self, client: Client) -> None:
        client.gone = True
        self._clients.discard(client)
        self._poller.unwatch(client.socket.fileno())
        client.socket.close()
        if not self._clients:
            self._idle_since = time.monotonic()
