"""A Docker daemon of our own for tests, which may kill it and start it again; and images made from nothing.

Containers outlive their daemon. So beside it hangs a small shell that reads the owner's pipe: when the owner ends in
whatever way, the pipe closes, and the shell kills what runs in containers. Needs root, `dockerd`, for images `busybox`.
"""

import contextlib
import io
import os
import select
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from docker.errors import APIError

from gurney.runtime.docker.daemon import Client
from gurney.runtime.docker.wire import answers
from gurney.testing.child import Child

READY_WITHIN_S = 60.0
GONE_WITHIN_S = 30.0
_KILLED_WITHIN_S = 1.0
_APPLETS = (
    *("cat", "chmod", "cp", "cut", "dd", "echo", "env", "expr", "false", "grep", "head", "id", "ls", "mkdir", "mkfifo"),
    *("mv", "nc", "ps", "pwd", "readlink", "rm", "sed", "seq", "setsid", "sh", "sleep", "sort", "stat", "tail", "test"),
    *("touch", "tr", "true", "wc"),
)
#: `$1` is the folder of the daemon's running things. Afterwards nothing is left of its containers.
_REAPER = """
read -r _
for pid in "$1"/containerd/daemon/io.containerd.runtime.v2.task/moby/*/init.pid; do
    [ -e "$pid" ] && kill -KILL "$(cat "$pid")"
done
for process in $(grep -lsF -- "$1/containerd/containerd.sock" /proc/[0-9]*/cmdline | cut -d/ -f3); do
    case $(tr '\\0' ' ' <"/proc/$process/cmdline") in *containerd-shim*) kill -KILL "$process" ;; esac
done
awk -v folder="${1%/*}/" 'index($2, folder) == 1 {print $2}' /proc/self/mounts | sort -r | while read -r mounted; do
    umount -l "$mounted"
done
""".replace("\\\\", "\\")


class DockerDaemon:
    """One daemon over one folder, apart from any other on the host. Methods block: call them off the loop."""

    def __init__(self, folder: Path, *, live_restore: bool = True, has_networks: bool = False) -> None:
        """`live_restore`: containers go on while the daemon is away. The folder's path is to be short: for sockets.

        `has_networks`: it can make some, in a network namespace of its own, which needs root.
        """
        self.folder = folder
        #: Counts from the next start on.
        self.live_restore = live_restore
        self._running = folder / "exec"
        self._containerd = self._running / "containerd" / "containerd.pid"
        command: list[str | Path] = ["unshare", "--net"] if has_networks else []
        command += ["dockerd", "--host", self.url, "--data-root", folder / "data"]
        command += ["--exec-root", self._running, "--pidfile", folder / "pid"]
        command += ["--bridge=none", "--log-level=warn"]
        if not has_networks:
            command += ["--iptables=false", "--ip-masq=false"]
        self._command = command
        self._child = Child(command, folder / "log")
        self._reaper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder / 'docker.sock'}"

    def client(self) -> Client:
        """Return a client, to be closed."""
        return Client(self.url)

    def start(self) -> Self:
        """Start it, and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Where the first process of the host reaps nobody, a daemon takes the dead containerd of another for alive.
        for left in (self.folder / "pid", self._containerd):
            left.unlink(missing_ok=True)
        if self._reaper is None:
            command: list[str | Path] = ["/bin/sh", "-c", _REAPER, "reaper", self._running]
            self._reaper = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
            )
        self._child.command = [*self._command, f"--live-restore={self.live_restore}".lower()]
        try:
            self._child.start().until(lambda: answers(self.url), READY_WITHIN_S)
        except BaseException:
            self.stop()
            raise
        return self

    def kill(self) -> None:
        """End the daemon by SIGKILL; its containers go on."""
        containerd = os.pidfd_open(int(self._containerd.read_text()))
        try:
            self._child.kill()
            if not select.select([containerd], [], [], _KILLED_WITHIN_S)[0]:
                signal.pidfd_send_signal(containerd, signal.SIGKILL)
                select.select([containerd], [], [], GONE_WITHIN_S)
        finally:
            os.close(containerd)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers once this returns."""
        self._child.pause()

    def resume(self) -> None:
        self._child.resume()

    def stop(self) -> None:
        """End the daemon in order, and then all its containers; nothing happens when it is not there."""
        self._child.stop()
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.communicate(timeout=GONE_WITHIN_S)

    def clean(self, label: str | None = None) -> None:
        """Remove all containers, or those with the label."""
        client = self.client()
        try:
            for each in client.containers(all=True, filters={"label": label} if label else None):
                with contextlib.suppress(APIError):  # somebody else removes it
                    client.remove_container(each["Id"], v=True, force=True)
        finally:
            client.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.clean()
        finally:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def busybox() -> Path | None:
    """Return a busybox that needs no libraries, as the distribution's package busybox-static has it."""
    found = shutil.which("busybox")
    return Path(found) if found else None


def make_image(
    client: Client, name: str, files: Mapping[str, str | bytes] | None = None, changes: Iterable[str] = ()
) -> str:
    """Make an image of busybox and the files (path -> content; `*path`: executable); returns its id.

    `changes` are lines of a Dockerfile: USER, WORKDIR, ENV, ENTRYPOINT, CMD, LABEL.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        program = busybox()
        if program is None:
            raise FileNotFoundError("busybox: install the package busybox-static")
        _add(tar, "bin/busybox", program.read_bytes(), 0o755)
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for path, content in (files or {}).items():
            data = content.encode() if isinstance(content, str) else content
            _add(tar, path.removeprefix("*").lstrip("/"), data, 0o755 if path.startswith("*") else 0o644)
    repository, _, tag = name.rpartition(":")
    client.import_image_from_data(archive.getvalue(), repository, tag, changes=list(changes))
    found = client.image(name)
    if found is None:
        raise RuntimeError(f"the image {name} was not made")
    return str(found["Id"])


def _add(tar: tarfile.TarFile, path: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
