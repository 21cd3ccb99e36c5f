"""Hosts on one machine: network namespaces, each joined to this one by a switch, and cut off from it at will.

Needs root, iproute2 and util-linux. The switch is a bridge in a namespace of its own. Namespaces have no names and no
files: each lives as long as a process in it, and with the switch goes every link, this machine's own included. So
nothing is left, however the owner ends. Methods block: call them off the loop.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from gurney.testing.child import Child

#: Networks of 256 addresses out of 198.18.0.0/15, which is for tests of networks (RFC 2544).
NETWORKS = tuple(f"198.{18 + number // 256}.{number % 256}" for number in range(512))
READY_WITHIN_S = 10.0
#: The switch's side of its link to this machine.
UPLINK = "uplink"


def missing() -> str | None:
    """Say what keeps this machine from having such hosts, None when nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if lacking := [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]:
        return f"no {lacking[0]} on PATH"
    trial = "ip link add one type veth peer name two && ip link add three type bridge"
    tried = subprocess.run(["unshare", "--net", "sh", "-c", trial], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else tried.stderr.strip() or "no network namespaces"


class Namespace:
    """A network namespace, held by a process that sleeps in it."""

    def __init__(self, log: Path) -> None:
        self._holder = Child(["unshare", "--net", "sleep", "infinity"], log)

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def enter(self) -> list[str | Path]:
        """What comes before a command that is to run inside."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]

    def start(self) -> Self:
        """Make it; inside, only the loopback interface is there."""
        self._holder.start().until(self._is_there, READY_WITHIN_S)
        self.ip("link set lo up")
        return self

    def stop(self) -> None:
        """Leave it to those who are still inside."""
        self._holder.stop()

    def ip(self, command: str) -> None:
        """Run a command of `ip` inside."""
        _run(*self.enter, "ip", *command.split())

    def _is_there(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        except FileNotFoundError:
            return False


class Network:
    """`count` hosts, as a context. This machine has an address that each reaches, and reaches each."""

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._switch = Namespace(folder / "switch.log")
        self._hosts = [Namespace(folder / f"host-{number}.log") for number in range(count)]
        self._network = ""

    def __len__(self) -> int:
        return len(self._hosts)

    @property
    def address(self) -> str:
        """This machine's."""
        return f"{self._network}.1"

    def address_of(self, number: int) -> str:
        """Return the address of a host, counted from 0."""
        return f"{self._network}.{number + 2}"

    def enter(self, number: int) -> list[str | Path]:
        """Return what comes before a command that is to run on a host."""
        return self._hosts[number].enter

    def cut(self, number: int) -> None:
        """Pull a host's cable: what it sends and what is sent to it is lost, and neither side is told."""
        self._switch.ip(f"link set port{number} down")

    def join(self, number: int) -> None:
        """Put the cable in again."""
        self._switch.ip(f"link set port{number} up")

    @contextlib.contextmanager
    def cut_off(self, number: int) -> Iterator[None]:
        """Cut a host off for the time of the context."""
        self.cut(number)
        try:
            yield
        finally:
            self.join(number)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._stop)
            self._switch.start()
            self._switch.ip("link add switch type bridge")
            self._switch.ip("link set switch up")
            self._network = self._connect_us()
            for number, host in enumerate(self._hosts):
                host.start()
                self._connect(number, host)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for namespace in (*self._hosts, self._switch):
            namespace.stop()

    def _connect_us(self) -> str:
        """Give this machine a link and an address in a network that nobody has here; returns the network."""
        ours = f"gurney{self._switch.pid}"  # no other process has this number, so nobody has this link
        _run("ip", "link", "add", ours, "type", "veth", "peer", "name", UPLINK, "netns", str(self._switch.pid))
        self._plug(UPLINK)
        with _alone():
            network = secrets.choice([each for each in NETWORKS if each not in _networks()])
            _run("ip", "address", "add", f"{network}.1/24", "dev", ours)
        _run("ip", "link", "set", ours, "up")
        return network

    def _connect(self, number: int, host: Namespace) -> None:
        self._switch.ip(f"link add port{number} type veth peer name eth0 netns {host.pid}")
        self._plug(f"port{number}")
        host.ip(f"address add {self.address_of(number)}/24 dev eth0")
        host.ip("link set eth0 up")

    def _plug(self, link: str) -> None:
        self._switch.ip(f"link set {link} master switch up")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other processes from choosing a network meanwhile."""
    with Path(tempfile.gettempdir(), "gurney-networks.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _networks() -> set[str]:
    """Return the networks that this machine has an address in."""
    links = json.loads(_run("ip", "-json", "-4", "address"))
    return {each["local"].rpartition(".")[0] for link in links for each in link["addr_info"]}


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout
