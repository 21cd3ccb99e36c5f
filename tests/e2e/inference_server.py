"""`gurney serve inference-server`, as a process, and what its clients send."""

import asyncio
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from gurney.testing.child import Child, free_port
from tests.e2e.api import Json
from tests.e2e.test_runs import packed, unpacked

__all__ = ["Facade", "packed", "unpacked"]

GURNEY = Path(sys.executable).parent / "gurney"
READY_WITHIN_S = 60
LISTENERS = ("public", "private", "v2")
TOKEN = "token-of-version-2"


class Facade:
    """Its three listeners, over one folder. As a context it serves."""

    def __init__(self, url: str, token: str, folder: Path, **environment: str) -> None:
        ports = {listener: free_port() for listener in LISTENERS}
        self.public, self.private, self.v2 = (f"http://127.0.0.1:{port}" for port in ports.values())
        settings = {
            "SERVER": url,
            "TOKEN": token,
            "DATA": str(folder / "inference-server"),
            "LISTENERS": ",".join(LISTENERS),
            "V2_TOKEN": TOKEN,
            **{f"{listener}_PORT".upper(): str(port) for listener, port in ports.items()},
        }
        self.environment = {f"GURNEY_INFERENCE_SERVER_{name}": value for name, value in settings.items()} | environment
        self.child = _Process([GURNEY, "serve", "inference-server"], folder / "facade.log", self.environment)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.child.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.child.stop)

    async def post_model(self, tag: str, name: str, *, use_gpu: bool = False) -> Json:
        """Post a model without static content to the private listener."""
        asked = {"container_tag": tag, "human_readable_id": name, "use_gpu": str(use_gpu)}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.private}/api/models/", params=asked) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return dict(await answer.json())


class _Process(Child):
    """A start returns when it serves."""

    def start(self) -> Self:
        told = self.log.read_text().count(SERVES) if self.log.exists() else 0
        wanted = told + len(LISTENERS)
        return super().start().until(lambda: self.log.read_text().count(SERVES) >= wanted, READY_WITHIN_S)


SERVES = "Gurney serves inference-server"
