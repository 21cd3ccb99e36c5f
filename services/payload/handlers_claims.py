"""Claims of jobs on payloads, and what becomes of payloads when jobs end, are finalized or deleted."""

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import TypeGuard

from gurney.documents.port import Write
from gurney.errors import KeyTaken, RevisionConflict
from gurney.ids import new_id
from gurney.model.common import Empty
from gurney.model.payload import (
    Claim,
    ClaimInput,
    DropJob,
    Ended,
    EndPayloads,
    FinalizeInput,
    Payload,
    PayloadState,
    ReleaseClaim,
    RestoreClaims,
)
from services.payload import machine
from services.payload.desk import Desk
from services.payload.effects import conflicted, drop_claims, payload_event
from services.payload.holds import end_outlived, let_go, let_go_released
from services.payload.repository import CLAIMS, PAYLOADS


class ClaimHandlers:
    """Answers to the job service."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    # --- a job comes ---

    async def claim(self, asked: ClaimInput) -> Payload:
        """Hold the payload first, then see whether it may be held: whoever changes it counts claims after his mark."""
        payload = await self._desk.access.open_payload(asked.caller, asked.payload)
        claim = machine.claim(payload.id, asked.job, asked.kind, self._desk.now())
        with contextlib.suppress(RevisionConflict):  # this request came before
            await self._desk.store.insert(CLAIMS, claim)
        try:
            await self._desk.quiet.wait(payload.id)
            return await self._desk.access.open_payload(asked.caller, payload.id)
        except Exception:
            await self._drop(claim.id)
            raise

    async def restore(self, asked: RestoreClaims) -> Empty:
        """Insert claims that are missing; a job that has ended since it was listed holds nothing by them."""
        now = self._desk.now()
        claims = [machine.claim(payload, job, "input", now) for payload, job in asked.claims]
        documents = self._desk.store.documents
        known = {claim.id for claim in await documents.get_many(CLAIMS, [claim.id for claim in claims])}
        payloads = await documents.get_many(PAYLOADS, [payload for payload, _ in asked.claims])
        there = {payload.id for payload in payloads}
        writes = [
            Write(CLAIMS, claim.id, 0, claim) for claim in claims if claim.id not in known and claim.payload in there
        ]
        if writes:
            lost = conflicted(writes, await self._desk.store.write(*writes))
            made = {write.id for write in writes} - set(lost)
            await end_outlived(self._desk, [claim for claim in claims if claim.id in made])
        return Empty()

    async def release(self, asked: ReleaseClaim) -> Empty:
        await self._drop(machine.claim_id(asked.payload, asked.job, asked.kind))
        await let_go_released(self._desk, {asked.payload})
        return Empty()

    # --- a job ends ---

    async def end(self, asked: EndPayloads) -> Ended:
        """Bind the results of one run, ever; let go of the input; let the drafts of other runs go."""
        while True:
            of_job = [payload for payload in await self._desk.repository.of_job(asked.job) if not payload.doomed]
            try:
                bound = await self._settle(asked, of_job)
                break
            except (RevisionConflict, KeyTaken):  # asked twice at once, or the draft has just been made
                continue
        results = bound.id if bound else None
        for payload in of_job:
            if payload.state is PayloadState.DRAFT and payload.id != results:
                await self._desk.deletion.doom(payload)
        fresh = results not in {payload.id for payload in of_job}
        files, size = (0, 0) if results is None or fresh else await self._desk.repository.totals(results)
        return Ended(results=results, files=files, bytes=size)

    async def _settle(self, asked: EndPayloads, of_job: Sequence[Payload]) -> Payload | None:
        """Write what the end of the job comes to, at once; returns its results."""
        now = self._desk.now()
        results = next((payload for payload in of_job if payload.state is not PayloadState.DRAFT), None)
        writes: list[Write] = []
        if results is None and asked.run is not None:
            results = _results(asked, of_job, now)
            event = payload_event("created", results, now)
            writes.append(Write(PAYLOADS, results.id, results.revision - 1, results, (event,)))
        if results is not None:
            claim = machine.claim(results.id, asked.job, "result", now)
            writes.append(Write(CLAIMS, claim.id, 0, claim))
        held = await self._desk.repository.claim(asked.payload, asked.job, "input")
        if held is not None and held.state == "holding":
            writes.append(Write(CLAIMS, held.id, held.revision, machine.end_hold(held)))
        await self._write_end(writes)
        return results

    async def _write_end(self, writes: Sequence[Write]) -> None:
        faults = await self._desk.store.write(*writes)
        for write, fault in zip(writes, faults, strict=True):
            if fault is None or (write.expected == 0 and isinstance(fault, RevisionConflict)):
                continue  # written, or there since this was asked before
            if write.collection is PAYLOADS:  # then nobody needs the claim on it
                await drop_claims(self._desk.store, [each.document for each in writes if _is_result(each.document)])
            raise fault

    # --- a job goes ---

    async def finalize(self, asked: FinalizeInput) -> Empty:
        await self._drop(machine.claim_id(asked.payload, asked.job, "input"))
        payload = await self._desk.repository.payload(asked.payload)
        if payload is not None:
            await let_go(self._desk, payload)
        return Empty()

    async def drop(self, asked: DropJob) -> Empty:
        """Let go of everything that a deleted job had; its input stays, unless it was to go with its last claim."""
        claims = await self._desk.repository.claims_of(asked.job)
        await drop_claims(self._desk.store, claims)
        await let_go_released(self._desk, {claim.payload for claim in claims if claim.kind == "input"})
        for payload in await self._desk.repository.of_job(asked.job):
            if payload.state is PayloadState.DRAFT:
                await self._desk.deletion.doom(payload)
            else:
                await let_go(self._desk, payload)
            if asked.wait:
                await self._desk.deletion.finish(payload.id)
        await self._desk.files.clear(asked.job)
        return Empty()

    async def _drop(self, claim_id: str) -> None:
        claim = await self._desk.store.documents.get(CLAIMS, claim_id)
        if claim is not None:
            await drop_claims(self._desk.store, [claim])


def _results(asked: EndPayloads, of_job: Sequence[Payload], now: datetime) -> Payload:
    draft = next((payload for payload in of_job if payload.run == asked.run), None)
    return machine.bound(draft, asked, now) if draft else machine.empty_results(new_id("pay"), asked, now)


def _is_result(document: object) -> TypeGuard[Claim]:
    return isinstance(document, Claim) and document.kind == "result"
