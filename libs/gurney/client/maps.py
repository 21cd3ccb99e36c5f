"""MAPs."""

import asyncio
from collections.abc import AsyncIterator, Mapping

from gurney.client.http import Json, filters, segment
from gurney.client.named import Named


class Maps(Named):
    _path = "/v1/maps"

    async def register(
        self,
        urn: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        description: Json | None = None,
        hardening: Json | None = None,
        gpu_sharing: bool = False,
        idempotency_key: str | None = None,
    ) -> Json:
        """Register a MAP; its state is `registering` until its manifests were read.

        `description` says what an image without manifests does, `hardening` what its container may not do without,
        `gpu_sharing` that its runs may share a GPU of which they ask a part.
        """
        body: Json = {"urn": urn, "name": name, "labels": dict(labels or {})}
        body |= {"description": description} if description else {}
        body |= {"hardening": hardening} if hardening else {}
        body |= {"gpu_sharing": True} if gpu_sharing else {}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        answer: Json = await self._http.json("POST", self._path, json=body, headers=headers)
        return answer

    async def settled(self, ref: str, *, poll_s: float = 0.05) -> Json:
        """Return the MAP once it is no longer `registering`."""
        while True:
            found = await self.get(ref)
            if found["state"] != "registering":
                return found
            await asyncio.sleep(poll_s)

    async def approve(self, ref: str) -> Json:
        """Let a MAP run where only approved ones may; for administrators."""
        answer: Json = await self._http.json("POST", f"{self._path}/{segment(ref)}/approve")
        return answer

    def list(
        self,
        *,
        name: str | None = None,
        state: str | None = None,
        urn: str | None = None,
        label: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Json]:
        return self._http.pages(self._path, filters(name=name, state=state, urn=urn, label=label))
