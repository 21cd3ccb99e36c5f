"""Sends spans to a collector, in batches and from a thread of its own.

It never holds anybody up: what does not fit into the bounded queue is lost and counted, and a collector that is away is
told once and tried again ever more seldom.
"""

import atexit
import http.client
import itertools
import threading
from collections import deque
from typing import Protocol
from urllib.parse import urlsplit

from gurney.otlp import request_of

#: Spans that wait to be sent; more are lost.
MOST = 20_000
#: Spans of one request.
BATCH = 4096
INTERVAL_S = 1.0
LONGEST_PAUSE_S = 30.0
TIMEOUT_S = 5.0
#: What the end of the process waits for the last spans.
LAST_S = 2.0
#: Answers after which the same spans may be sent again (OTLP).
_AGAIN = frozenset({408, 429, 502, 503, 504})


class Watcher(Protocol):
    """Is told what becomes of the spans, from the exporter's thread."""

    def sent(self, spans: int) -> None: ...

    def lost(self, spans: int) -> None: ...

    def away(self, why: str) -> None:
        """Called once each time that the collector goes."""

    def back(self) -> None: ...


class Silent:
    """Whoever runs a program with a client in it wants to hear nothing of this."""

    def sent(self, spans: int) -> None: ...

    def lost(self, spans: int) -> None: ...

    def away(self, why: str) -> None: ...

    def back(self) -> None: ...


class Exporter:
    """Sends spans to one collector, for ever and as well as it goes."""

    def __init__(self, endpoint: str, watcher: Watcher | None = None) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{endpoint} is no URL of a collector, such as http://127.0.0.1:4318")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
        self._path = f"{parts.path.rstrip('/')}/v1/traces"
        self._watcher = watcher or Silent()
        self._queue: deque[tuple[str, bytes]] = deque()
        self._held: tuple[int, bytes] | None = None
        self._lost = 0
        self._is_away = False
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gurney-spans", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, service: str, span: bytes) -> None:
        """Have a span sent soon."""
        if len(self._queue) < MOST:
            self._queue.append((service, span))
        else:
            self._lost += 1

    def flush(self, within_s: float = LAST_S) -> None:
        """Send what waits, for at most about so long."""
        if self._sending.acquire(timeout=within_s):
            try:
                self._send_all(within_s)
            finally:
                self._sending.release()

    def close(self) -> None:
        """Send what waits, for a moment, and end."""
        atexit.unregister(self.close)
        if not self._closing.is_set():
            self._closing.set()
            self.flush()
            self._connection.close()

    def _run(self) -> None:
        pause = INTERVAL_S
        while not self._closing.wait(pause):
            with self._sending:
                done = self._send_all(TIMEOUT_S)
            pause = INTERVAL_S if done else min(LONGEST_PAUSE_S, 2 * pause)

    def _send_all(self, timeout_s: float) -> bool:
        lost, self._lost = self._lost, 0
        if lost:
            self._watcher.lost(lost)
        while self._held or self._queue:
            self._held = self._held or self._take()
            if not self._post(*self._held, timeout_s):
                return False
            self._held = None
        return True

    def _take(self) -> tuple[int, bytes]:
        spans = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        return len(spans), request_of(spans)

    def _post(self, spans: int, body: bytes, timeout_s: float) -> bool:
        """Tell whether the spans are dealt with: taken, or refused for good."""
        try:
            status = self._ask(body, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return self._note_away(type(error).__name__)
        if status in _AGAIN:
            return self._note_away(f"status {status}")
        if status >= 300:  # noqa: PLR2004  # HTTP's border of success
            self._note_away(f"status {status}")
            self._watcher.lost(spans)
            return True
        self._watcher.sent(spans)
        if self._is_away:
            self._is_away = False
            self._watcher.back()
        return True

    def _ask(self, body: bytes, timeout_s: float) -> int:
        self._connection.timeout = timeout_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)
        self._connection.request("POST", self._path, body, {"Content-Type": "application/x-protobuf"})
        answer = self._connection.getresponse()
        for _ in itertools.takewhile(bool, iter(lambda: answer.read(65536), None)):
            pass
        return answer.status

    def _note_away(self, why: str) -> bool:
        if not self._is_away:
            self._is_away = True
            self._watcher.away(why)
        return False
