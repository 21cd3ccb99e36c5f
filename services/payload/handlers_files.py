"""Files: list, sign, upload, remove. Bytes never come here: movers carry them over the URLs that are signed here.

An upload is begun, its bytes are PUT, then it is committed or abandoned. In an open payload a commit or removal is
announced by a mark first; then jobs that hold the payload are counted, and the change is made or taken back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from gurney import clock
from gurney.errors import IntegrityError, Invalid, NotFound
from gurney.ids import new_id
from gurney.model.common import Empty, Page
from gurney.model.event import Event
from gurney.model.payload import (
    AbandonUploads,
    BeginUploads,
    BegunUpload,
    BegunUploads,
    Committed,
    CommitUploads,
    Content,
    File,
    FileList,
    FileView,
    LogRef,
    Mark,
    Payload,
    RemoveFile,
    SignedFile,
    SignedFiles,
    SignedUpload,
    SignFiles,
    SignUpload,
    Upload,
    Uploaded,
)
from gurney.paths import is_folder
from services.payload import file_machine, machine, policy
from services.payload.desk import Desk
from services.payload.effects import Changes, Decide, Quiet, Tell, payload_event, update
from services.payload.repository import PAYLOADS


class FileHandlers:
    """Answers about the files of payloads, drafts and logs."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    # --- reading ---

    async def files(self, asked: FileList) -> Page[FileView]:
        payload = await self._desk.access.readable(asked)
        return await self._desk.repository.file_page(payload.id, asked)

    async def sign(self, asked: SignFiles) -> SignedFiles:
        payload = await self._desk.access.readable(asked)
        found = await self._desk.repository.files_at(payload.id, asked.paths)
        return SignedFiles(items=tuple(self._signed(found.get(path), path, named=asked.named) for path in asked.paths))

    async def log(self, asked: LogRef) -> SignedFile:
        path = policy.log_path(asked.attempt)
        return self._signed(await self._desk.repository.file(asked.job, path), path)

    def _signed(self, file: File | None, path: str, *, named: bool = False) -> SignedFile:
        there = policy.require_content(file, path)
        name = path.rpartition("/")[2] if named else None
        url = self._desk.objects.sign_get(file_machine.content_key(there), name)
        return SignedFile(file=file_machine.view(there), url=url, last_change=there.last_change)

    # --- uploads ---

    async def begin(self, asked: BeginUploads) -> BegunUploads:
        policy.check_paths(asked.paths)
        target = await self._desk.access.target(asked, asked.paths)
        if target.shared:  # once more at the commit, but before gigabytes are moved for nothing
            policy.refuse_held(target.owner, await self._desk.repository.holding(target.owner))
            await self._refuse_clashes(target.owner, asked.paths)
        now = self._desk.now()
        keys = {path: policy.object_key(target.owner, path, new_id("upl")) for path in asked.paths}
        uploads = (
            file_machine.fresh(policy.file_id(target.owner, path), target.owner, path, Upload(key=key, begun_at=now))
            for path, key in keys.items()
        )
        begun = {file.path: file.last_change for file in await self._desk.files.begin(uploads)}
        sign = self._desk.objects.sign_put
        items = (BegunUpload(path=path, key=key, url=sign(key), last_change=begun[path]) for path, key in keys.items())
        return BegunUploads(owner=target.owner, items=tuple(items))

    async def urls(self, asked: SignUpload) -> SignedUpload:
        """Sign an upload again, or its parts, for as long as it is wanted."""
        target = await self._desk.access.target(asked, [asked.path])
        id_ = policy.file_id(target.owner, asked.path)
        file = (await self._desk.repository.files_by_id([id_])).get(id_)
        file = file_machine.require_begun(file, asked.path, asked.key)
        signed = await self._desk.objects.sign_upload(asked.key, asked.parts)
        return signed.but(last_change=file.last_change)

    async def commit(self, asked: CommitUploads) -> Committed:
        paths = [item.path for item in asked.items]
        policy.check_paths(paths)
        for item in asked.items:
            policy.check_uploaded(item)
        target = await self._desk.access.target(asked, paths)
        items = {policy.file_id(target.owner, item.path): item for item in asked.items}
        await self._check_bytes(items)
        changes = await (self._commit_shared(target.shared, items) if target.shared else self._commit(items, None))
        if target.filling:
            await self._touch(target.owner)
        await self._desk.files.clean(changes)
        return _committed(asked.items, changes)

    async def _check_bytes(self, items: dict[str, Uploaded]) -> None:
        """See that the bytes of these uploads are there before anybody may see the files."""
        known = await self._desk.repository.files_by_id(list(items))
        for id_, item in items.items():
            file_machine.require_begun(known.get(id_), item.path, item.key)
        await asyncio.gather(*(self._check_object(item) for item in items.values() if not is_folder(item.path)))

    async def _check_object(self, item: Uploaded) -> None:
        stored = await self._desk.objects.stat(item.key)
        if stored is None:
            raise Invalid.field("key", f"nothing was stored for {item.path}")
        if stored.size != item.size:
            raise IntegrityError(f"{item.path} was stored with {stored.size} bytes, not {item.size}")

    async def _commit(self, items: dict[str, Uploaded], mark: Mark | None, payload: Payload | None = None) -> Changes:
        now = self._desk.now()

        def commit(file: File) -> File | None:
            item = items[file.id]
            content = Content(key=item.key, size=item.size, sha256=item.sha256, created_at=now)
            return file_machine.commit(file, content, mark.id if mark else None)

        return await self._desk.files.change(items, commit, _telling(payload, now))

    async def _commit_shared(self, payload: Payload, items: dict[str, Uploaded]) -> Changes:
        """Commit into a payload that jobs may hold."""

        def mark_unless_committed(file: File, mark: Mark) -> File:
            item = items[file.id]
            if file_machine.committed(file, item.key):
                return file
            file_machine.require_begun(file, file.path, item.key)
            return file_machine.mark(file, mark, item.after)

        async with self._marked(payload.id, list(items), mark_unless_committed) as mark:
            await self._require_free(payload)
            await self._refuse_clashes(payload.id, [item.path for item in items.values()], mark)
            changes = await self._commit(items, mark, payload)
        await self._touch(payload.id)
        return changes

    async def abandon(self, asked: AbandonUploads) -> Empty:
        """Give uploads up. What was committed meanwhile stays, what came too late for everything goes."""
        paths = [path for path, _ in asked.items]
        try:
            owner = (await self._desk.access.target(asked, paths)).owner
        except NotFound:
            owner = await self._desk.access.orphaned(asked) or ""
            if not owner:
                raise
        now = self._desk.now()
        keys = {key for path, key in asked.items if policy.file_of_key(key) == policy.file_id(owner, path)}
        changes = await self._desk.files.change(
            {policy.file_id(owner, path) for path in paths},
            lambda file: file_machine.abandon(file, keys, now),
            missing_ok=True,
        )
        await self._desk.files.clean(changes)
        known = {key for _, after in changes if after for key in file_machine.all_keys(after)}
        await self._desk.objects.give_up(keys - known)
        return Empty()

    async def remove(self, asked: RemoveFile) -> Empty:
        payload = await self._desk.access.open_payload(asked.caller, asked.payload)
        file = policy.require_content(await self._desk.repository.file(payload.id, asked.path), asked.path)
        decide: Callable[[File, Mark], File] = lambda file, mark: file_machine.mark(file, mark, asked.after)  # noqa: E731
        async with self._marked(payload.id, [file.id], decide) as mark:
            await self._require_free(payload)
            now = self._desk.now()
            changes = await self._desk.files.change(
                [file.id], lambda file: file_machine.remove(file, mark.id, now), _telling(payload, now)
            )
        await self._touch(payload.id)
        await self._desk.files.clean(changes)
        return Empty()

    # --- changes that a job may forbid ---

    @asynccontextmanager
    async def _marked(
        self, owner: str, ids: Sequence[str], decide: Callable[[File, Mark], File]
    ) -> AsyncIterator[Mark]:
        """Announce a change of these files; what was not made inside is taken back."""
        mark = await self._mark(owner, ids, decide)
        try:
            yield mark
        except Exception:
            await self._unmark(ids, mark)
            raise
        finally:
            self._desk.bell.ring(owner)

    async def _mark(self, owner: str, ids: Sequence[str], decide: Callable[[File, Mark], File]) -> Mark:
        deadline = clock.monotonic() + Quiet.PATIENCE_S
        while True:
            mark = Mark(id=new_id("upl"), at=self._desk.now())
            try:
                await self._desk.files.change(ids, lambda file, mark=mark: decide(file, mark))  # type: ignore[misc]
            except Exception as error:
                busy = isinstance(error, file_machine.Busy)
                if not busy or len(ids) > 1:  # else nothing was marked, and nobody is to be woken for nothing
                    await self._unmark(ids, mark)
                    self._desk.bell.ring(owner)
                if not busy or clock.monotonic() > deadline:
                    raise
                await self._desk.bell.wait(owner, Quiet.LOOK_S)
            else:
                return mark

    async def _unmark(self, ids: Sequence[str], mark: Mark) -> None:
        decide: Decide = lambda file: file_machine.unmark(file, mark.id)  # noqa: E731
        await self._desk.files.change(ids, decide, missing_ok=True)

    async def _require_free(self, payload: Payload) -> None:
        """Refuse a change of a payload that went, or that a job came to hold, since the change was announced."""
        policy.require_visible(await self._desk.access.payload(None, payload.id))
        policy.refuse_held(payload.id, await self._desk.repository.holding(payload.id))

    async def _refuse_clashes(self, owner: str, paths: Sequence[str], mark: Mark | None = None) -> None:
        """Refuse paths that could not be laid out on a disk beside what is there, or beside what is just coming."""
        coming = await self._coming(owner, mark) if mark else []  # first: what ends meanwhile is found below
        found = await self._desk.repository.clashes(owner, paths)
        if found:
            raise policy.both_file_and_folder(*found)
        for path in paths:
            if other := policy.clash(path, coming):
                raise policy.both_file_and_folder(path, other)

    async def _coming(self, owner: str, mark: Mark) -> list[str]:
        """Return the paths that others have announced."""
        changing = await self._desk.repository.changing(owner)
        return [file.path for file in changing if file.pending and file.changing and file.changing.id != mark.id]

    async def _touch(self, payload_id: str) -> None:
        now = self._desk.now()
        await update(self._desk.store, PAYLOADS, payload_id, lambda payload: machine.touched(payload, now))


def _telling(payload: Payload | None, now: datetime) -> Tell:
    """Return what tells `payload.changed` with the path; nothing for drafts and logs."""

    def tell(before: File, _: File | None) -> tuple[Event, ...]:
        return (payload_event("changed", payload, now, before.path),) if payload else ()

    return tell


def _committed(items: Sequence[Uploaded], changes: Changes) -> Committed:
    views = {after.path: file_machine.view(after) for _, after in changes if after}
    replaced = tuple(
        before.path for before, after in changes if after and before.content and before.content != after.content
    )
    return Committed(items=tuple(views[item.path] for item in items), replaced=replaced)
