"""What may lie beside what in a payload, how files and objects are named, and what a run's token reaches. Pure."""

import hashlib
import re
from collections.abc import Iterable, Sequence

from gurney.errors import Conflict, Forbidden, Invalid, NotFound, PayloadInUse
from gurney.model.payload import Claim, File, Payload, PayloadState, Uploaded
from gurney.paths import check_path, folders_of, is_folder
from gurney.runtoken import RunGrant

#: `owner` of uploads that a run's token asks for.
RESULTS, LOG = "results", "log"
NAMED_HOLDERS = 10

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
#: The character that follows `/`: paths below a folder lie between the two.
_AFTER_SLASH = chr(ord("/") + 1)


def file_id(owner: str, path: str) -> str:
    """Return the id of the one document that tells of a path."""
    return f"{owner}/{_path_digest(path)}"


def object_key(owner: str, path: str, upload_id: str) -> str:
    """Return the key of an upload's object: it tells which document must know it."""
    return f"{owner}/{upload_id}-{_path_digest(path)}"


def file_of_key(key: str) -> str:
    """Return the id of the document that must know this object, for as long as it is wanted."""
    owner, _, name = key.partition("/")
    return f"{owner}/{name.rpartition('-')[2]}"


def _path_digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:32]


# --- paths ---


def check_paths(paths: Sequence[str]) -> None:
    """Refuse a batch that has a bad path, a path twice, or one that would be both file and folder."""
    for path in paths:
        check_path(path)
    if len(set(paths)) < len(paths):
        raise Invalid.field("path", "is there twice in one request")
    files = {path for path in paths if not is_folder(path)}
    for path in paths:
        for other in files_above(path):
            if other in files:
                raise both_file_and_folder(path, other)


def files_above(path: str) -> list[str]:
    """Return the paths that may not be files where `path` lies."""
    above = [folder.removesuffix("/") for folder in folders_of(path)]
    return [*above, path.removesuffix("/")] if is_folder(path) else above


def range_below(path: str) -> tuple[str, str] | None:
    """Return the range (first, end) in which nothing may lie where `path` is a file; None for a folder."""
    return None if is_folder(path) else (f"{path}/", f"{path}{_AFTER_SLASH}")


def clash(path: str, others: Iterable[str]) -> str | None:
    """Return one of the others beside which `path` cannot lie."""
    above, below = set(files_above(path)), range_below(path)
    return next((each for each in others if each in above or (below and below[0] <= each < below[1])), None)


def both_file_and_folder(path: str, other: str) -> Invalid:
    return Invalid.field("path", f"{path} cannot be stored beside {other}: one would be both a file and a folder")


def check_uploaded(item: Uploaded) -> None:
    """Refuse what no upload can have come to."""
    if item.size < 0 or (is_folder(item.path) and item.size):
        raise Invalid.field("size", f"of {item.path} cannot be {item.size}")
    if _SHA256.fullmatch(item.sha256) is None:
        raise Invalid.field("sha256", "must be 64 lower-case hexadecimal digits")


# --- payloads ---


def gone(payload: Payload) -> bool:
    """Tell whether the payload exists for nobody outside this service."""
    return payload.state is PayloadState.DELETING or payload.doomed


def visible(payload: Payload) -> bool:
    """Tell whether clients, jobs and runs find the payload; one that is being filled is known to its filler only."""
    return not gone(payload) and payload.state is not PayloadState.FILLING


def require_visible(payload: Payload) -> None:
    if not visible(payload):
        raise NotFound(f"there is no payload {payload.id}")


def require_open(payload: Payload) -> None:
    if payload.state is not PayloadState.OPEN:
        raise Conflict(f"{payload.id} is the draft of a run: only its run may change it")


def refuse_held(payload_id: str, holding: Sequence[Claim]) -> None:
    """Raise `PayloadInUse` with the ids of the jobs and MAPs that hold the payload, if any do."""
    if holding:
        jobs = ", ".join(claim.job for claim in holding[:NAMED_HOLDERS])
        raise PayloadInUse(f"{payload_id} is held by {jobs}")


def goes_with_last_claim(payload: Payload) -> bool:
    """Tell whether the contents go when nobody claims the payload any more."""
    return payload.state is PayloadState.OPEN and not payload.doomed and not payload.keep


# --- runs ---


def require_input(grant: RunGrant, payload_id: str) -> None:
    if payload_id != grant.payload:
        raise Forbidden("the token of a run reads the input of this run only")


def log_path(attempt: int) -> str:
    return f"{attempt}.log"


def require_own_log(grant: RunGrant, paths: Iterable[str]) -> None:
    if set(paths) - {log_path(grant.attempt)}:
        raise Forbidden("the token of a run writes the log of this attempt only")


def require_own_draft(grant: RunGrant, draft: Payload) -> None:
    if draft.run != grant.run_id:
        raise Forbidden("the token of a run writes the results of this run only")
    if draft.state is not PayloadState.DRAFT:
        raise Conflict("the results of this run are bound: nothing is added to them by the run")


def require_content(file: File | None, path: str) -> File:
    if file is None or file.content is None:
        raise NotFound(f"there is no file {path}")
    return file
