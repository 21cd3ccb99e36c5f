"""The states of payloads and claims. Pure; no other module assigns them.

payload   draft -> open        `bound`, when the job ends; one draft per job, ever
          filling -> open      `opened`, when the whole archive is in: name and idempotency key count from here on
          open -> deleting     `mark_deleting`: nobody sees it from here on
          deleting -> open     `undo_deleting`: a job was found to hold it
          deleting, draft, filling   `doom`: it cannot come back; then contents, document and event go
claim     holding -> keeping   `end_hold`, when the job ends
"""

from datetime import datetime
from typing import Literal

from gurney.errors import Conflict, NotFound
from gurney.model.payload import Claim, ClaimKind, EndPayloads, Payload, PayloadCreate, PayloadState


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
        state=PayloadState.FILLING if asked.filling else PayloadState.OPEN,
        keep=body.keep,
        transient=asked.transient,
    )


def keys_when_open(payload: Payload) -> tuple[str, ...]:
    """Return the keys that the payload will need once it is open."""
    return payload.but(state=PayloadState.OPEN).unique_keys()


def opened(payload: Payload, now: datetime) -> Payload:
    """Return a payload that was filled, for all to see from now on; raises `NotFound` where it was given up."""
    if payload.doomed or payload.state not in {PayloadState.FILLING, PayloadState.OPEN}:
        raise NotFound(f"{payload.id} is not being filled any more")
    if payload.state is PayloadState.OPEN:
        return payload
    return payload.next(state=PayloadState.OPEN, created_at=now, updated_at=now)


def drafted(payload_id: str, job: str, run: str | None, owner: Payload | EndPayloads, now: datetime) -> Payload:
    """Return the draft that a run fills; whose it is, is its input's until the job ends."""
    return Payload(
        id=payload_id,
        project=owner.project,
        created_by=owner.created_by,
        created_at=now,
        updated_at=now,
        state=PayloadState.DRAFT,
        job=job,
        run=run,
        transient=isinstance(owner, Payload) and owner.transient,
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
    return drafted(payload_id, asked.job, asked.run, asked, now).but(state=PayloadState.OPEN, partial=asked.partial)


def mark_deleting(payload: Payload, now: datetime) -> Payload:
    """Hide the payload, so that no claim succeeds any more; keys stay until it is doomed."""
    return _turned(payload, PayloadState.OPEN, PayloadState.DELETING, now)


def undo_deleting(payload: Payload, now: datetime) -> Payload:
    return _turned(payload, PayloadState.DELETING, PayloadState.OPEN, now)


def _turned(payload: Payload, before: PayloadState, after: PayloadState, now: datetime) -> Payload:
    if payload.state is not before or payload.doomed:
        return payload
    return payload.next(state=after, updated_at=now)


def doom(payload: Payload) -> Payload:
    """Make a deletion final. A payload that is open is left as it is: its deletion was undone, or never asked."""
    if payload.state is PayloadState.OPEN or payload.doomed:
        return payload
    return payload.next(doomed=True)


def released(payload: Payload) -> Payload:
    """Note that the payload is to go with its last claim, whoever has that."""
    return payload if payload.released else payload.next(released=True)


def touched(payload: Payload, now: datetime) -> Payload:
    """Return the payload with the time of its last change; one of concurrent changes is enough to say it."""
    return payload.next(updated_at=now) if payload.updated_at < now else payload


# --- claims ---


def claim_id(payload: str, job: str, kind: ClaimKind) -> str:
    return f"{payload}.{job}.{kind}"


def claim(payload: str, job: str, kind: ClaimKind, now: datetime) -> Claim:
    """Return the claim by which a job holds its input or keeps its results, or a MAP holds what it brings along."""
    state: Literal["holding", "keeping"] = "keeping" if kind == "result" else "holding"
    return Claim(id=claim_id(payload, job, kind), payload=payload, job=job, kind=kind, state=state, created_at=now)


def end_hold(claim: Claim) -> Claim:
    return claim.next(state="keeping") if claim.state == "holding" else claim
