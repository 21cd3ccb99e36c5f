"""The life of one path: uploads, content, garbage, and the mark under which a held payload stays as it is. Pure.

upload    begun: `pending` -> `content` (commit) or `garbage` (abandon, sweep)
content   -> `garbage` when another content replaces it or it is removed
garbage   -> gone, once the store has deleted the bytes
A change of an open payload is marked first (`mark`), then made or unmarked. What a function returns is the document to
write; the argument itself: nothing to write; None: nothing is left of the file, its document goes.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

from gurney.errors import Conflict, NotFound, RevisionConflict, Unavailable
from gurney.model.payload import Content, File, FileView, Mark, Upload
from gurney.paths import is_folder

#: A change that was announced is made within milliseconds. Who needs longer was stopped, and may not make it any more.
MARK_LASTS = timedelta(seconds=10)


def fresh(id_: str, owner: str, path: str, upload: Upload) -> File:
    """Return the document of a path that was not known: one upload has begun."""
    return File(id=id_, owner=owner, path=path, folder=is_folder(path), pending=(upload,), unsettled=upload.begun_at)


def begin(file: File, upload: Upload) -> File:
    return file.next(pending=(*file.pending, upload), unsettled=file.unsettled or upload.begun_at)


def mark(file: File, new: Mark, after: str | None = None) -> File:
    """Announce a change; `Busy` while another is announced, for as long as that lasts.

    Raises `RevisionConflict` where the last change is not `after`: who asked may have asked for something else since.
    """
    if after is not None and file.last_change != after:
        raise RevisionConflict(f"{file.path} has changed")
    if file.changing is not None and file.changing.at > new.at - MARK_LASTS:
        raise Busy(f"another change of {file.path} is under way", retry_after_s=1)
    return file.next(changing=new, unsettled=file.unsettled or new.at)


def unmark(file: File, mark_id: str) -> File | None:
    """Take back a mark, if it still stands."""
    if file.changing is None or file.changing.id != mark_id:
        return file
    return _settled(file.next(changing=None), file.changing.at)


def unmark_before(file: File, at: datetime) -> File | None:
    """Take back a mark that was set before this time."""
    return unmark(file, file.changing.id) if file.changing is not None and file.changing.at < at else file


def committed(file: File, key: str) -> bool:
    """Tell whether this upload is the content already: a repeated commit finds it so."""
    return file.content is not None and file.content.key == key


def require_begun(file: File | None, path: str, key: str) -> File:
    """Return the file; an upload that is neither pending nor committed is refused."""
    if file is None or not (committed(file, key) or key in {upload.key for upload in file.pending}):
        raise Conflict(f"the upload of {path} was never begun, or was given up")
    return file


def commit(file: File, content: Content, mark_id: str | None) -> File | None:
    """Make a pending upload the content. `mark_id` None: of a draft or log, which nobody holds."""
    if committed(file, content.key):
        return file
    require_begun(file, file.path, content.key)
    _require_mark(file, mark_id)
    after = file.next(
        content=content,
        pending=_without(file, {content.key}),
        garbage=(*file.garbage, *_key_of(file)),
        changing=None if mark_id else file.changing,
        last_change=mark_id or file.last_change,
    )
    return _settled(after, content.created_at)


def remove(file: File, mark_id: str, now: datetime) -> File | None:
    """Take the content away."""
    if file.content is None:
        raise NotFound(f"there is no file {file.path}")
    _require_mark(file, mark_id)
    garbage = (*file.garbage, *_key_of(file))
    return _settled(file.next(content=None, garbage=garbage, changing=None, last_change=mark_id), now)


def abandon(file: File, keys: Collection[str], now: datetime) -> File | None:
    """Give up these uploads, as far as they are pending: their bytes may go from here on."""
    given_up = tuple(upload.key for upload in file.pending if upload.key in keys)
    if not given_up:
        return file
    return _settled(file.next(pending=_without(file, given_up), garbage=(*file.garbage, *given_up)), now)


def forget(file: File, keys: Collection[str]) -> File | None:
    """Drop garbage whose bytes are gone."""
    if not set(file.garbage) & set(keys):
        return file
    return _settled(file.next(garbage=tuple(key for key in file.garbage if key not in keys)), file.unsettled)


def sweep(file: File, marks_before: datetime, uploads_before: datetime) -> File | None:
    """Give up what a crash, or a client that went away, left: marks and uploads that began before these times."""
    after = unmark_before(file, marks_before)
    stale = {upload.key for upload in file.pending if upload.begun_at < uploads_before}
    if after is not None and stale:
        after = abandon(after, stale, uploads_before)
        after = after.but(revision=file.revision + 1) if after is not None else None
    return after


def all_keys(file: File) -> list[str]:
    """Return the keys of every object that the file may have."""
    return [*content_keys(file), *unwanted_keys(file)]


def content_keys(file: File) -> list[str]:
    """Return the key of the content, if there is one."""
    return [*_key_of(file)]


def unwanted_keys(file: File) -> list[str]:
    """Return the keys of what is no content: of some of them the PUT may never have come to its end."""
    return [*(upload.key for upload in file.pending), *file.garbage]


def content_key(file: File) -> str:
    """Return the key of the content; the file must have one."""
    if file.content is None:
        raise NotFound(f"there is no file {file.path}")
    return file.content.key


def view(file: File) -> FileView:
    """Return the file as clients see it; it must have content."""
    if file.content is None:
        raise NotFound(f"there is no file {file.path}")
    content = file.content
    return FileView(path=file.path, size=content.size, sha256=content.sha256, created_at=content.created_at)


class Busy(Unavailable):
    """Two changes of one file at once: the second waits a moment."""


def _require_mark(file: File, mark_id: str | None) -> None:
    if mark_id is not None and (file.changing is None or file.changing.id != mark_id):
        raise Unavailable(f"the change of {file.path} took too long and was given up", retry_after_s=1)


def _without(file: File, keys: Collection[str]) -> tuple[Upload, ...]:
    return tuple(upload for upload in file.pending if upload.key not in keys)


def _key_of(file: File) -> tuple[str, ...]:
    return (file.content.key,) if file.content else ()


def _settled(file: File, since: datetime | None) -> File | None:
    if file.pending or file.garbage or file.changing:
        return file if file.unsettled else file.but(unsettled=since)
    return file.but(unsettled=None) if file.content else None
