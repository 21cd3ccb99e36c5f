"""Every service as a process of its own, several of each, over real servers: the topology of a site on one machine.

    python -m gurney.testing.stack --data DIR [--maps DIR] [--agents 2] [--replicas 2] [--apart]

nats-server with a user for each service, MongoDB and MinIO keep their data in the folder; the edges share one port, a
second scheduler stands by, and each agent stands for a host. Methods block: call them off the loop.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from gurney.credentials import USERS, generate
from gurney.testing.child import LOOPBACK, Child, answers, free_port
from gurney.testing.minio import minio
from gurney.testing.mongo import MongoServer
from gurney.testing.nats import NatsServer
from gurney.testing.network import Network

GURNEY = Path(sys.executable).parent / "gurney"
READY_WITHIN_S = 60.0
#: As in `compose/nats.conf`: who is frozen is soon asked no more.
PINGS = 'ping_interval: "5s"\nping_max: 2'
REPLICATED = ("edge", "map", "payload", "job", "notifier", "scheduler")


class Process(Child):
    """One `gurney serve`, of this machine or, after a command that goes there, of another host."""

    def __init__(
        self, service: str, log: Path, environment: Mapping[str, str], enter: Sequence[str | Path] = ()
    ) -> None:
        self.service = service
        self.health = free_port()
        own = {"GURNEY_METRICS_PORT": str(self.health)}
        super().__init__([*enter, GURNEY, "serve", service], log, {**environment, **own})

    def begin(self) -> None:
        """Start; returns before the service serves."""
        super().start()

    def start(self) -> Self:
        """Start and return when the service serves."""
        return super().start().wait()

    def wait(self) -> Self:
        """Return when the service serves; raises `TimeoutError` with the end of its log."""
        url = f"http://{self.environment['GURNEY_HOST']}:{self.health}/readyz"
        return self.until(lambda: answers(url), READY_WITHIN_S)


class Stack:
    """The whole, over one folder; it keeps its ports and all that it knows from start to start."""

    def __init__(
        self,
        data: Path,
        maps: Path | None,
        environment: Mapping[str, str] | None = None,
        *,
        replicas: int = 2,
        agents: int = 2,
        network: Network | None = None,
    ) -> None:
        """`network`: where the agents are, one each, reached over the network; by default all are on this machine."""
        self.data = data
        self.network = network
        self._address = network.address if network else LOOPBACK
        self._maps = maps
        self._environment = dict(environment or {})
        self._secrets = data / "secrets"
        self._nodes = [f"node-{number}" for number in range(1, (len(network) if network else agents) + 1)]
        self._port = free_port()
        self._replicas = replicas
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        generate(self._secrets, self._nodes, with_operator=True)
        settings = f'{PINGS}\ninclude "../{self._secrets.name}/{USERS}"'
        self.nats = NatsServer(data / "nats", settings=settings, host=self._address)
        self.mongo = MongoServer(data / "mongo")
        self.minio = minio(data / "minio", host=self._address)
        self.processes: dict[str, Process] = {}

    @property
    def url(self) -> str:
        return f"http://{self._address}:{self._port}"

    @property
    def token(self) -> str:
        return (self._secrets / "gurney_admin_token").read_text().strip()

    @property
    def hosts(self) -> list[Path]:
        """The data folder of each agent."""
        return [self.data / node for node in self._nodes]

    @property
    def parts(self) -> dict[str, Child]:
        """Everything that may fail, by name."""
        return {"nats": self.nats, "mongo": self.mongo, "minio": self.minio, **self.processes}

    @property
    def logs(self) -> str:
        """What every service has logged."""
        lines = "".join(path.read_text() for path in sorted((self.data / "logs").glob("*.log"))).splitlines()
        return "\n".join(line for line in lines if not line.startswith("Gurney "))  # that is for people

    def start(self) -> Self:
        """Start everything and return when everything serves."""
        with ExitStack() as undo:
            undo.callback(self.stop)
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda part: part.start(), (self.nats, self.mongo, self.minio)))
            if not self.processes:
                self.processes = dict(self._made())
            for process in self.processes.values():
                process.begin()
            for process in self.processes.values():
                process.wait()
            undo.pop_all()
        return self

    def stop(self) -> None:
        """End everything in order: those first who speak to the others."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda process: process.stop(), self.processes.values()))
            list(pool.map(lambda part: part.stop(), (self.nats, self.mongo, self.minio)))

    def of(self, service: str) -> list[str]:
        """Return the names of a service's processes."""
        return [name for name, process in self.processes.items() if process.service == service]

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Kill a part for the time of the context, and start it again."""
        self.parts[name].kill()
        try:
            yield
        finally:
            self.parts[name].start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _made(self) -> Iterator[tuple[str, Process]]:
        logs = self.data / "logs"
        logs.mkdir(exist_ok=True)
        for service in REPLICATED:
            for number in range(1, self._replicas + 1):
                name = f"{service}-{number}"
                yield name, Process(service, logs / f"{name}.log", self._settings(name))
        for number, node in enumerate(self._nodes):
            yield node, self._agent(number, node, logs / f"{node}.log")

    def _agent(self, number: int, node: str, log: Path) -> Process:
        environment = self._settings(node) | {"GURNEY_NODE": node}
        if self._maps:
            environment["GURNEY_MAPS"] = str(self._maps)
        if self.network is None:
            return Process("agent", log, environment)
        environment["GURNEY_HOST"] = self.network.address_of(number)
        return Process("agent", log, environment, self.network.enter(number))

    def _settings(self, name: str) -> dict[str, str]:
        return {
            "GURNEY_SECRETS_DIR": str(self._secrets),
            "GURNEY_NATS_URL": self.nats.url,
            "GURNEY_MONGO_URL": self.mongo.url,
            **{f"GURNEY_{name.upper()}": value for name, value in self.minio.settings().items()},
            "GURNEY_DATA": str(self.data / name),
            "GURNEY_HOST": self._address,
            "GURNEY_PORT": str(self._port),
            "GURNEY_REUSE_PORT": "1",
            "GURNEY_WEBHOOK_PRIVATE": "loopback",
            **self._environment,
        }


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None, wait: Callable[[], object] = signal.pause) -> None:
    """Run the stack until a signal."""
    parser = argparse.ArgumentParser(prog="scripts/stack", description="Run every service as a process of its own.")
    parser.add_argument("--data", type=Path, required=True, help="folder of everything that is kept")
    parser.add_argument("--maps", type=Path, help="folder of folder MAPs")
    parser.add_argument("--agents", type=int, default=2, help="how many hosts the agents stand for")
    parser.add_argument("--apart", action="store_true", help="give each agent a network of its own; needs root")
    parser.add_argument("--replicas", type=int, default=2, help="how many there are of every other service")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    maps = chosen.maps.absolute() if chosen.maps else None
    data = chosen.data.absolute()
    began = time.monotonic()
    with ExitStack() as open_:
        network = open_.enter_context(Network(data / "network", chosen.agents)) if chosen.apart else None
        made = Stack(data, maps, replicas=chosen.replicas, agents=chosen.agents, network=network)
        stack = open_.enter_context(made)
        say(f"Gurney is ready at {stack.url} after {time.monotonic() - began:.1f} s\ntoken: {stack.token}")
        try:
            wait()
        except KeyboardInterrupt:
            say("Gurney stops; runs go on until the next start")


if __name__ == "__main__":
    main()
