"""The states of payloads and claims. Pure; no other module assigns them.

payload   draft -> open        `bind`, when the job ends; one draft per job, ever
          open -> deleting     `mark_deleting`: nobody sees it from here on
          deleting -> open     `undo_deleting`: a job was found to hold it
          deleting, draft      `doom`: it cannot come back; then contents, document and event go
claim     holding -> keeping   `end_hold`, when the job ends
"""

from datetime import datetime
from typing import Literal

from gurney.errors import Conflict
from gurney.model.payload import Claim, EndPayloads, Payload, PayloadCreate, PayloadState
from gurney.runtoken import RunGrant

Kind = Literal["input", "result"]


def created(payload_id: str, name: str | None, asked: PayloadCreate, now: datetime) -> Payload:
    """Return a client's new payload."""
    body, caller = asked.body, asked.caller
    return Payload(
        id=payload_id,
        project=caller.project,
        created_by=caller.subject,
        created_at=now,
        updated_at=now,
        idempotency=asked.idempotency,
        name=name,
        labels=body.labels,
        state=PayloadState.OPEN,
        keep=body.keep,
    )


def drafted(payload_id: str, grant: RunGrant, source: Payload, now: datetime) -> Payload:
    """Return the draft that a run fills; whose it is, is its input's until the job ends."""
    return Payload(
        id=payload_id,
        project=source.project,
        created_by=source.created_by,
        created_at=now,
        updated_at=now,
        state=PayloadState.DRAFT,
        job=grant.job_id,
        run=grant.run_id,
    )


def bound(draft: Payload, asked: EndPayloads, now: datetime) -> Payload:
    """Return the draft as the results of its job."""
    if draft.state is not PayloadState.DRAFT or draft.doomed:
        raise Conflict(f"{draft.id} is no draft any more")
    return draft.next(
        state=PayloadState.OPEN,
        project=asked.project,
        created_by=asked.created_by,
        partial=asked.partial,
        updated_at=now,
    )


def empty_results(payload_id: str, asked: EndPayloads, now: datetime) -> Payload:
    """Return the results of a run that wrote nothing."""
    return Payload(
        id=payload_id,
        project=asked.project,
        created_by=asked.created_by,
        created_at=now,
        updated_at=now,
        state=PayloadState.OPEN,
        partial=asked.partial,
        job=asked.job,
        run=asked.run,
    )


def mark_deleting(payload: Payload, now: datetime) -> Payload:
    """Hide the payload, so that no claim succeeds any more; keys stay until it is doomed."""
    if payload.state is not PayloadState.OPEN or payload.doomed:
        return payload
    return payload.next(state=PayloadState.DELETING, updated_at=now)


def undo_deleting(payload: Payload, now: datetime) -> Payload:
    if payload.state is not PayloadState.DELETING or payload.doomed:
        return payload
    return payload.next(state=PayloadState.OPEN, updated_at=now)


def doom(payload: Payload) -> Payload:
    """Make a deletion final. A payload that is open is left as it is: its deletion was undone, or never asked."""
    if payload.state is PayloadState.OPEN or payload.doomed:
        return payload
    return payload.next(doomed=True)


def touched(payload: Payload, now: datetime) -> Payload:
    """Return the payload with the time of its last change; one of concurrent changes is enough to say it."""
    return payload.next(updated_at=now) if payload.updated_at < now else payload


# --- claims ---


def claim_id(payload: str, job: str, kind: Kind) -> str:
    return f"{payload}.{job}.{kind}"


def input_claim(payload: str, job: str, now: datetime) -> Claim:
    """Return the claim by which a job holds its input."""
    return Claim(
        id=claim_id(payload, job, "input"), payload=payload, job=job, kind="input", state="holding", created_at=now
    )


def result_claim(payload: str, job: str, now: datetime) -> Claim:
    """Return the claim by which a job keeps its results."""
    return Claim(
        id=claim_id(payload, job, "result"), payload=payload, job=job, kind="result", state="keeping", created_at=now
    )


def end_hold(claim: Claim) -> Claim:
    return claim.next(state="keeping") if claim.state == "holding" else claim
