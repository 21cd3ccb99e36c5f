"""The stack, of which any one part dies, or rests, and comes back, while all others go on."""

import asyncio
import random
from collections import Counter, defaultdict

from gurney.testing.child import Child
from gurney.testing.docker import DockerDaemon
from gurney.testing.stack import REPLICATED, Stack
from tests.e2e.kill_server import Insistent

#: What everything stands on.
SERVERS = ("nats", "mongo", "minio")
#: Kinds of parts that are there in each stack.
PARTS = (*REPLICATED, "agent", *SERVERS)


class BreakingStack(Insistent):
    """The stack, as clients know it who go on asking while its parts come and go."""

    is_late = True

    def __init__(self, stack: Stack, daemon: DockerDaemon | None = None) -> None:
        """`daemon`: the Docker daemon of all hosts, where it is one of the parts."""
        super().__init__()
        self.stack = stack
        self.daemon = daemon
        self.done: Counter[str] = Counter()
        self._away: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def parts(self) -> dict[str, Child | DockerDaemon]:
        return {**self.stack.parts, **({"dockerd": self.daemon} if self.daemon else {})}

    async def befall(self, kind: str, rng: random.Random) -> None:
        """Let one part of a kind die, or rest, for a while. Several parts may at a time, each once."""
        name = self._one_of(kind, rng)
        part = self.parts[name]
        await asyncio.sleep(rng.uniform(0, 0.5))
        async with self._away[name]:
            if kind == "pause":
                await asyncio.to_thread(part.pause)
                await asyncio.sleep(rng.uniform(0.2, 5))
                part.resume()
            else:
                await asyncio.to_thread(part.kill)
                if kind == "wipe":
                    await asyncio.to_thread(self.stack.nats.wipe)
                await asyncio.sleep(rng.choice([0, rng.uniform(0, 2)]))
                if isinstance(part, DockerDaemon):
                    part.live_restore = rng.random() < 0.5  # its containers live on, or die when it is back
                await asyncio.to_thread(part.start)
        self.done[kind] += 1

    def _one_of(self, kind: str, rng: random.Random) -> str:
        match kind:
            case "pause":
                return rng.choice(list(self.parts))
            case "wipe":
                return "nats"
        return kind if kind in self.parts else rng.choice(self.stack.of(kind))

    def table(self) -> str:
        return "\n".join(["     kind times", *(f"{kind:>9} {times:5}" for kind, times in self.done.items())])
