"""What a run needs before it starts: its image and its input. Asked for while the scheduler is asked whether it may."""

import asyncio
from pathlib import Path

from gurney.content import digest_of
from gurney.errors import IntegrityError, MapUnreadable
from gurney.model.run import StartRun
from gurney.runtime.port import Runtime
from services.agent.effects import Counts
from services.agent.folders import Work
from services.agent.host import Host
from services.agent.patience import Early, persist
from services.agent.staging import Source, Staging


class Preparation:
    """Of one run. Making it asks for the image and for the list of the input; nothing is fetched yet."""

    def __init__(self, host: Host, start: StartRun, runtime: Runtime | None, work: Work) -> None:
        self._host = host
        self._start = start
        self._runtime = runtime
        self._work = work
        self._patience_s = host.settings.transfer_patience
        self._image = Early(self._make_available)
        self._input = self._staging(Source(start.request.payload, start.token), work.input)

    def discard(self) -> None:
        """Break off what was asked for and is not wanted."""
        self._image.discard()
        self._input.discard()

    async def bring_image(self) -> None:
        """Have the image here; raises `GaveUp`."""
        await persist(self._image, self._patience_s)
        self._host.holdings.brought(self._start.request.digest)

    async def bring_input(self, counts: Counts, *, anew: bool) -> None:
        """Have the input here; raises `GaveUp`. Not `anew`: the folders may hold what an agent before us left."""
        if not anew:
            await persist(lambda: asyncio.to_thread(self._work.make), self._patience_s)
        await self._input.bring(counts)

    async def bring_content(self) -> None:
        """Have what the MAP brings along; raises `GaveUp`, `IntegrityError` where it is not what was registered."""
        content = self._start.request.content
        if content is None:
            return

        async def fill(folder: Path) -> None:
            staging = self._staging(Source(content.payload, self._start.content_token), folder)
            await staging.bring(Counts())
            if digest_of(staging.files) != content.digest:
                raise IntegrityError(f"{content.payload} is not what it was when the MAP was registered")

        await self._host.contents.bring(content.digest, self._work, fill)
        self._host.holdings.brought(content.digest)

    def _staging(self, source: Source, folder: Path) -> Staging:
        return Staging(self._host.bus, source, folder, lanes=self._host.lanes, patience_s=self._patience_s)

    async def _make_available(self) -> None:
        request = self._start.request
        if self._runtime is None:
            raise MapUnreadable("no_runtime", f"no runtime of this node runs {request.urn}")
        await self._runtime.available(request.urn, request.digest)
