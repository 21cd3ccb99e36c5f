"""Jobs."""

import asyncio
import codecs
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gurney.client.http import CHUNK, Http, Incoming, Json, Moved, ServerEvent, filters, query, segment
from gurney.client.payloads import Payloads
from gurney.clock import monotonic
from gurney.errors import Unavailable

TERMINAL = frozenset({"succeeded", "failed", "canceled"})
#: Seconds that one question with `Prefer: wait` may take.
WAIT_S = 60
#: Seconds for which a server that is away is asked again, and between two tries.
PATIENCE_S, PAUSE_S = 60.0, 0.5


class Jobs:
    _path = "/v1/jobs"

    def __init__(self, http: Http) -> None:
        self._http = http

    def _of(self, job: str, part: str = "") -> str:
        return f"{self._path}/{segment(job)}{part}"

    async def create(self, *, map: str, payload: str, idempotency_key: str | None = None, **options: Any) -> Json:  # noqa: A002
        """Submit a job; options are the other fields of POST /v1/jobs."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        body = {"map": map, "payload": payload, **options}
        answer: Json = await self._http.json("POST", self._path, json=body, headers=headers)
        return answer

    async def get(self, job: str, *, wait_s: int | None = None) -> Json:
        """Return a job; with `wait_s` (at most 60) when it has ended, or then."""
        headers = {"Prefer": f"wait={wait_s}"} if wait_s is not None else None
        answer: Json = await self._http.json("GET", self._of(job), headers=headers)
        return answer

    async def wait(self, job: str) -> Json:
        """Return the job once it has ended. A server that is away is asked again for a while: the job goes on."""
        until: float | None = None
        while True:
            try:
                found = await self.get(job, wait_s=WAIT_S)
            except Unavailable:
                until = until or monotonic() + PATIENCE_S
                if monotonic() >= until:
                    raise
                await asyncio.sleep(PAUSE_S)
                continue
            if found["state"] in TERMINAL:
                return found
            until = None

    def list(self, *, label: Mapping[str, str] | None = None, **wanted: Any) -> AsyncIterator[Json]:
        """Iterate over jobs, newest first; filters: map, payload, state, created_after, ..., completed_before."""
        return self._http.pages(self._path, filters(label=label, **wanted))

    async def cancel(self, job: str) -> Json:
        answer: Json = await self._http.json("POST", self._of(job, "/cancel"))
        return answer

    async def finalize(self, job: str) -> Json:
        answer: Json = await self._http.json("POST", self._of(job, "/finalize"))
        return answer

    async def delete(self, job: str) -> None:
        await self._http.json("DELETE", self._of(job))

    async def story(self, job: str) -> Json:
        answer: Json = await self._http.json("GET", self._of(job, "/story"))
        return answer

    async def logs(self, job: str, *, follow: bool = False, attempt: int | None = None) -> AsyncIterator[str]:
        """Yield the run's output; with `follow` as it is written, until the job ends.

        Who follows a run that writes faster than he reads gets a line about what is left out; it is in the kept log.
        """
        path = self._of(job, "/logs") + query(filters(attempt=attempt, follow="true" if follow else None))
        if follow:
            async for event in self._http.events(path):
                if event.type == "log":
                    yield event.data["text"] if isinstance(event.data, dict) else str(event.data)
                elif event.type == "gap":
                    yield f"\n[gurney: {event.data['bytes']} bytes of the log are not here]\n"
            return
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        async with self._http.stream("GET", path) as response:
            async for chunk in response.content.iter_any():
                yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)

    def events(self, job: str) -> AsyncIterator[ServerEvent]:
        """Yield what happens to the job, until it ends."""
        return self._http.events(self._of(job, "/events"))

    async def download(self, job: str, into: Path | str, *, moved: Moved | None = None) -> Sequence[Path]:
        """Download the results, each file verified; returns the local paths."""
        results = (await self.get(job))["results"]
        return await Payloads(self._http).download(results, into, moved=moved) if results else []

    @asynccontextmanager
    async def results(self, job: str, *, tar: bool = False) -> AsyncIterator[Incoming]:
        """Yield the results as a zip, or tar, as it comes."""
        headers = {"Accept": "application/x-tar" if tar else "application/zip"}
        async with self._http.stream("GET", self._of(job, "/results"), headers=headers) as response:
            yield Incoming(response.content.iter_chunked(CHUNK), response.content_length)

    async def result(self, job: str, path: str) -> bytes:
        async with self._http.stream("GET", self._of(job, f"/results/{segment(path)}")) as response:
            return await response.read()
