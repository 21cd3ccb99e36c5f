"""What becomes of holding claims whose jobs no longer need them, and of payloads that nobody claims any more."""

import contextlib
from collections.abc import Collection, Sequence

from gurney.errors import NotFound, PayloadInUse
from gurney.model.payload import Claim, Payload
from services.payload import machine, policy
from services.payload.desk import Desk
from services.payload.effects import drop_claims, update
from services.payload.repository import CLAIMS, PAYLOADS


async def end_outlived(desk: Desk, claims: Sequence[Claim]) -> None:
    """End holds of jobs that have ended, and drop those of jobs that are finalized, deleted or never were.

    Those of MAPs that run no more go, too. What a finalized job had claimed goes, as it would have gone with it.
    """
    alive = await desk.alive(sorted({claim.job for claim in claims}))
    finalized = set(alive.finalized)
    known = {*alive.live, *alive.ended} - finalized
    await drop_claims(desk.store, [claim for claim in claims if claim.job not in known])
    for claim in claims:
        if claim.job not in known:
            payload = await desk.repository.payload(claim.payload)
            if payload and (payload.released or (claim.job in finalized and claim.kind == "input")):
                await let_go(desk, payload)
        elif claim.job in alive.ended and await desk.store.documents.get(CLAIMS, claim.id):
            await update(desk.store, CLAIMS, claim.id, machine.end_hold)


async def let_go_released(desk: Desk, payloads: Collection[str]) -> None:
    """Let payloads go that were to go with their last claim, which may just have gone."""
    for payload in await desk.store.documents.get_many(PAYLOADS, sorted(payloads)):
        if payload.released:
            await let_go(desk, payload)


async def let_go(desk: Desk, payload: Payload) -> None:
    """Let a payload go that is to go with its last claim: now, or when that goes."""
    if not policy.goes_with_last_claim(payload):
        return
    with contextlib.suppress(PayloadInUse, NotFound):  # a job was quicker, or somebody else deleted it
        if await desk.repository.claimed(payload.id):
            await update(desk.store, PAYLOADS, payload.id, machine.released)
        if not await desk.repository.claimed(payload.id):
            await desk.deletion.delete(payload.id, unclaimed=True)
            await desk.deletion.finish_transient(payload)
