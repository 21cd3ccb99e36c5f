"""Who reaches which payload: clients by their role, runs by their token."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from gurney import telemetry
from gurney.errors import Forbidden, Invalid, JobTerminal, KeyTaken, NotFound
from gurney.ids import is_id, new_id
from gurney.model.access import Caller
from gurney.model.job import JobsAlive
from gurney.model.payload import (
    AbandonUploads,
    BeginUploads,
    CommitUploads,
    FileList,
    Payload,
    PayloadState,
    SignFiles,
    SignUpload,
)
from gurney.paths import check_name
from gurney.runtoken import RunGrant, verify
from gurney.store import Store
from services.payload import machine, policy
from services.payload.repository import PAYLOADS, Repository

#: Asks which of these jobs there are, and which of these MAPs may run.
AskAlive = Callable[[Sequence[str]], Awaitable[JobsAlive]]
Uploads = BeginUploads | SignUpload | CommitUploads | AbandonUploads


@dataclass(frozen=True)
class Target:
    """Where uploads go."""

    owner: str
    #: The open payload of a client; None for drafts, logs and what is being filled: nobody holds them.
    shared: Payload | None = None
    #: It is a payload that is being filled.
    filling: bool = False


class Access:
    """Resolves what a request names, and refuses what its sender may not reach."""

    def __init__(
        self, store: Store, repository: Repository, *, secret: str, alive: AskAlive, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._repository = repository
        self._secret = secret
        self._alive = alive
        self._now = now

    async def payload(self, caller: Caller | None, ref: str) -> Payload:
        """Return the payload with this id or name; raises `NotFound` where there is none for this caller."""
        found = await self.reached(caller, ref)
        policy.require_visible(found)
        return found

    async def reached(self, caller: Caller | None, ref: str) -> Payload:
        """Return a payload as `payload` does, also one that is being filled: only its filler knows the id."""
        found = await self._find(caller, ref)
        if found is None or policy.gone(found) or (caller and not caller.sees(found)):
            raise NotFound(f"there is no payload {ref}")
        return found

    async def _find(self, caller: Caller | None, ref: str) -> Payload | None:
        if is_id(ref, "pay"):
            return await self._repository.payload(ref)
        try:
            name = check_name(ref)
        except Invalid:
            return None
        project = caller.project if caller else "default"
        return await self._repository.payload_by_key(f"name:{project}:{name}")

    async def open_payload(self, caller: Caller | None, ref: str) -> Payload:
        """Return a payload that clients may change and jobs may use."""
        payload = await self.payload(caller, ref)
        policy.require_open(payload)
        return payload

    async def readable(self, asked: FileList | SignFiles) -> Payload:
        """Return the payload whose files the sender may read."""
        if asked.token:
            policy.require_input(self._granted(asked.token), asked.payload)
        return await self.payload(_caller(asked.caller, asked.token), asked.payload)

    def _granted(self, token: str) -> RunGrant:
        grant = verify(self._secret, token)
        telemetry.about(grant.run_id)
        return grant

    async def target(self, asked: Uploads, paths: Sequence[str]) -> Target:
        """Return where the sender's uploads go; a run's draft is made when its first upload begins."""
        if not asked.token:
            return await self._target_of(_caller(asked.caller, None), asked.owner)
        grant = self._granted(asked.token)
        if not isinstance(asked, AbandonUploads):
            await self._require_live(grant)
        if asked.owner in {policy.LOG, grant.job_id}:
            policy.require_own_log(grant, paths)
            return Target(grant.job_id)
        draft = await self._draft(grant, asked)
        policy.require_own_draft(grant, draft)
        return Target(draft.id)

    async def _target_of(self, caller: Caller | None, ref: str) -> Target:
        payload = await self.reached(caller, ref)
        if payload.state is PayloadState.FILLING:
            return Target(payload.id, filling=True)
        policy.require_open(payload)
        return Target(payload.id, payload)

    async def orphaned(self, asked: AbandonUploads) -> str | None:
        """Return the owner that these uploads had, if it is gone: then anybody may give them up."""
        if not is_id(asked.owner, "pay"):
            return None
        owner = await self._repository.payload(asked.owner)
        return asked.owner if owner is None or policy.gone(owner) else None

    async def _require_live(self, grant: RunGrant) -> None:
        """Refuse runs of a job that has ended: its results are settled, whichever run they came from."""
        claim = await self._repository.claim(grant.payload, grant.job_id, "input")
        if claim is not None and claim.state == "holding":
            return
        # A claim may be lost with a create that was given up too soon; the job's owner makes it up.
        if claim is None and grant.job_id in (await self._alive([grant.job_id])).live:
            return
        raise JobTerminal(f"{grant.job_id} has ended: run {grant.run_id} writes nothing any more")

    async def _draft(self, grant: RunGrant, asked: Uploads) -> Payload:
        if is_id(asked.owner, "pay"):
            found = await self._repository.payload(asked.owner)
        elif asked.owner == policy.RESULTS:
            found = await self._repository.payload_by_key(f"run:{grant.run_id}")
            if found is None and isinstance(asked, BeginUploads):
                found = await self._new_draft(grant)
        else:
            raise Forbidden("the token of a run writes its results and its log only")
        if found is None or not policy.visible(found):
            raise NotFound(f"run {grant.run_id} has no draft")
        return found

    async def _new_draft(self, grant: RunGrant) -> Payload:
        source = await self.payload(None, grant.payload)
        draft = machine.drafted(new_id("pay"), grant.job_id, grant.run_id, source, self._now())
        try:
            return await self._store.insert(PAYLOADS, draft)
        except KeyTaken as taken:  # another upload of this run was quicker
            return await self._store.get(PAYLOADS, taken.holder)


def _caller(caller: Caller | None, token: str | None) -> Caller | None:
    """Return the caller; whoever comes with neither name nor token reads and writes nothing."""
    if caller is None and not token:
        raise Forbidden("neither a caller nor the token of a run was given")
    return caller
