"""Makes up for crashes: every gap between two writes of this service is closed by one of these steps."""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from gurney import telemetry
from gurney.errors import NotFound, PayloadInUse
from gurney.model.payload import File, PayloadState
from services.payload import file_machine, policy
from services.payload.desk import Desk
from services.payload.holds import end_outlived
from services.payload.repository import BATCH

#: A payload marked for deletion is decided at once; a draft or a claim outlives its job for a moment.
MOMENT = timedelta(seconds=60)
#: What is unpacked into a transient payload comes from a disk close by: a batch of it takes minutes at most.
FILLED = timedelta(minutes=15)
#: A claim comes before its job.
CLAIM = timedelta(hours=1)
#: Objects that no document knows come from uploads that went on after they were given up: rare, and dear to look for.
AUDIT = timedelta(days=1)

_log = telemetry.log("payload")


class Sweep:
    """One round is `run`. `alone`: who moves bytes dies with this process, so what began before is dead."""

    def __init__(self, desk: Desk, upload: timedelta, *, alone: bool) -> None:
        self._desk = desk
        #: An upload that takes longer is given up.
        self._upload = upload
        self._born = desk.now() if alone else datetime.min.replace(tzinfo=UTC)
        self._audited: datetime | None = None

    async def run(self) -> None:
        """Look at everything that may have been left. What needs the job service comes last: it may be away."""
        await self.deletions()
        await self.filling()
        await self.transient()
        await self.files()
        await self._desk.objects.sweep((self._desk.now() - self._before(self._upload)).total_seconds())
        await self.audit()
        await self.claims()
        await self.drafts()

    def _before(self, age: timedelta) -> datetime:
        return max(self._desk.now() - age, self._born)

    async def deletions(self) -> None:
        """Finish deletions."""
        for payload in await self._desk.repository.in_state(PayloadState.DELETING, self._before(MOMENT)):
            if payload.doomed:
                self._desk.deletion.soon(payload.id)
            else:
                await self._desk.deletion.decide_again(payload)

    async def filling(self) -> None:
        """Let payloads go that nobody fills any more: each batch of files is an upload, and tells by its commit."""
        for payload in await self._desk.repository.in_state(PayloadState.FILLING, self._before(self._upload)):
            await self._desk.deletion.doom(payload)

    async def transient(self) -> None:
        """Let payloads go that were to serve one job each, and that no job claims: who made them is gone."""
        filled, begun = self._before(MOMENT), self._before(FILLED)
        for payload in await self._desk.repository.transient(filled):
            if payload.state is PayloadState.FILLING and payload.updated_at < begun:
                await self._desk.deletion.doom(payload)
            elif payload.state is PayloadState.OPEN and not await self._desk.repository.claimed(payload.id):
                with contextlib.suppress(PayloadInUse, NotFound):  # a job has come, or somebody else deleted it
                    await self._desk.deletion.delete(payload.id, unclaimed=True)

    async def files(self) -> None:
        """Give up dead marks and uploads, and delete garbage."""
        after: tuple[str, str] | None = None
        while files := await self._desk.repository.unsettled(self._before(file_machine.MARK_LASTS), after):
            await self._settle(files)
            last = files[-1]
            after = (str(last.model_dump(mode="json")["unsettled"]), last.id)

    async def _settle(self, files: Sequence[File]) -> None:
        marks, uploads = self._before(file_machine.MARK_LASTS), self._before(self._upload)

        def sweep(file: File) -> File | None:
            return file_machine.sweep(file, marks, uploads)

        changes = await self._desk.files.change([file.id for file in files], sweep, missing_ok=True)
        await self._desk.files.clean(changes)

    async def audit(self) -> None:
        """Delete objects that no document knows, at start and once a day."""
        if self._audited is not None and self._desk.now() - self._audited < AUDIT:
            return
        self._audited = self._desk.now()
        keys: list[str] = []
        async for info in self._desk.objects.list():
            keys.append(info.key)
            if len(keys) == BATCH:
                await self._delete_unknown(keys)
                keys = []
        await self._delete_unknown(keys)

    async def _delete_unknown(self, keys: Sequence[str]) -> None:
        """The document of an upload is older than its object, so what no document knows now, none will."""
        files = await self._desk.repository.files_by_id([policy.file_of_key(key) for key in keys])
        known = {key for file in files.values() for key in file_machine.all_keys(file)}
        unknown = [key for key in keys if key not in known]
        if unknown:
            _log.warning("objects without a file", count=len(unknown))
            await self._desk.objects.delete(unknown)

    async def claims(self) -> None:
        """Let holding claims go whose jobs, or MAPs, no longer need them."""
        after: tuple[str, str] | None = None
        while claims := await self._desk.repository.held_before(self._before(CLAIM), after):
            await end_outlived(self._desk, claims)
            last = claims[-1]
            after = (str(last.model_dump(mode="json")["created_at"]), last.id)

    async def drafts(self) -> None:
        """Let drafts go whose job has ended, with another run's results or none, or is gone."""
        drafts = await self._desk.repository.in_state(PayloadState.DRAFT, self._desk.now() - MOMENT)
        if not drafts:
            return
        live = set((await self._desk.alive(sorted({draft.job or "" for draft in drafts}))).live)
        for draft in drafts:
            if draft.job not in live:
                await self._desk.deletion.doom(draft)
