"""The error tree: code, HTTP status and whether a retry may help are data; nobody matches on a text.

GurneyError
├── Invalid 422                 IdempotencyKeyReused · Infeasible · NoRuntime
├── Unauthorized 401
├── Forbidden 403
├── NotFound 404
├── Conflict 409                NameTaken · PayloadInUse · MapInUse · MapNotReady · JobLive · JobTerminal ·
│                               JobNotFinished · RevisionConflict · KeyTaken · AlreadyRunning
├── TooLarge 413
├── UnsupportedType 415
├── RangeNotSatisfiable 416
├── Unavailable 503 (retry)     NoRoom · NoNodes · NatsUnavailable · StoreUnavailable · Busy
├── ImageUnavailable 503 (retry)  ImageChanged (no retry)
├── MapUnreadable 422           (its code says which: manifest_missing, no_command, registry_denied, no_runtime, ...)
├── IntegrityError 500          bytes that are not what was stored
├── RunFailed 500               RunTimedOut 504
└── Internal 500
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel


class FieldError(BaseModel, frozen=True):
    """One fault of the input: which field, and what is wrong with it."""

    field: str
    message: str


class ErrorBody(BaseModel, frozen=True):
    """An error as it crosses NATS."""

    code: str
    message: str
    errors: tuple[FieldError, ...] = ()
    retry_after_s: float | None = None


@dataclass(eq=False)
class GurneyError(Exception):
    """The root. `message` is one plain sentence for people."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    #: Something is wrongly set up: no waiting helps, whatever the code says.
    lasting: ClassVar[bool] = False
    title: ClassVar[str] = "Internal error"

    message: str = ""
    errors: Sequence[FieldError] = ()
    #: Seconds after which a retry makes sense; None: not known.
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message or self.title

    def body(self) -> ErrorBody:
        """Return the error as it crosses NATS."""
        return ErrorBody(
            code=self.code, message=str(self)[:2048], errors=tuple(self.errors), retry_after_s=self.retry_after_s
        )


class Internal(GurneyError):
    pass


class Invalid(GurneyError):
    code, status, title = "invalid", 422, "The request is not valid"

    @classmethod
    def field(cls, field: str, message: str) -> "Invalid":
        """Return the error for one field."""
        return cls.fields((FieldError(field=field, message=message),))

    @classmethod
    def fields(cls, faults: Sequence[FieldError]) -> "Invalid":
        """Return the error that names every field at fault."""
        return cls("; ".join(f"{fault.field}: {fault.message}" for fault in faults), faults)


class IdempotencyKeyReused(Invalid):
    code, title = "idempotency_key_reused", "The Idempotency-Key was used with another body"


class Infeasible(Invalid):
    code, title = "infeasible", "No node could ever hold this job"


class NoRuntime(Invalid):
    """No node runs MAPs of this kind. Its code is the `reason.code` of a MAP that is `invalid` for it."""

    code, title = "no_runtime", "No node runs MAPs of this kind"


class MapUnreadable(Invalid):
    """A MAP whose container or manifest cannot be used. `reason` is the MAP's `reason.code`."""

    code, title = "map_unreadable", "The MAP cannot be used"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Unauthorized(GurneyError):
    code, status, title = "unauthorized", 401, "A valid token is needed"


class Forbidden(GurneyError):
    code, status, title = "forbidden", 403, "The role of this token does not allow it"


class NotFound(GurneyError):
    code, status, title = "not_found", 404, "No such thing"


class Conflict(GurneyError):
    code, status, title = "conflict", 409, "The state does not allow it"


class NameTaken(Conflict):
    code, title = "name_taken", "The name is taken"


class PayloadInUse(Conflict):
    code, title = "payload_in_use", "Jobs hold the payload"


class MapInUse(Conflict):
    code, title = "map_in_use", "Jobs of the MAP are live"


class MapNotReady(Conflict):
    code, title = "map_not_ready", "The MAP is not ready"


class JobLive(Conflict):
    code, title = "job_live", "The job has not ended"


class JobTerminal(Conflict):
    code, title = "job_terminal", "The job has ended"


class JobNotFinished(Conflict):
    code, title = "job_not_finished", "The job has no results yet"


class RevisionConflict(Conflict):
    """Somebody else changed the document first: read again, decide again."""

    code, title, retryable = "revision_conflict", "The document has changed", True


class KeyTaken(Conflict):
    """A unique key is held by another document, whose id is `holder`."""

    code, title = "key_taken", "The key is taken"

    def __init__(self, key: str, holder: str) -> None:
        super().__init__(f"{key} is held by {holder}")
        self.key = key
        self.holder = holder


class AlreadyRunning(Conflict):
    code, title = "already_running", "A server runs on this data folder"


class TooLarge(GurneyError):
    code, status, title = "too_large", 413, "The content is too large"


class UnsupportedType(GurneyError):
    code, status, title = "unsupported_type", 415, "The content type is not supported"


class RangeNotSatisfiable(GurneyError):
    code, status, title = "range_not_satisfiable", 416, "The range lies outside the file"


class Unavailable(GurneyError):
    code, status, title, retryable = "unavailable", 503, "A part of the server is away", True


class NoRoom(Unavailable):
    code, title = "no_room", "No room for this job now"


class NoNodes(Unavailable):
    code, title = "no_nodes", "No node is known"


class NatsUnavailable(Unavailable):
    code, title = "nats_unavailable", "The message server is away"


class StoreUnavailable(Unavailable):
    code, title = "store_unavailable", "A store is away"


class TooLate(Unavailable):
    code, title = "too_late", "The question waited for longer than its asker"


class Busy(Unavailable):
    code, title = "busy", "As many runs are being answered as may be at a time"


class ImageUnavailable(Unavailable):
    code, title = "image_unavailable", "The MAP's image cannot be had on this node"


class ImageChanged(ImageUnavailable):
    """What this host would run is not what was registered: waiting does not help, another host may."""

    code, title, retryable = "image_changed", "The MAP is another one on this node", False


class IntegrityError(GurneyError):
    code, title = "integrity", "Stored bytes are not what was written"


class RunFailed(GurneyError):
    """The job whose end a client waited for did not succeed. The problem document names it, and why."""

    code, title = "run_failed", "The run failed"

    #: Id of the job, whose record stays.
    job: str | None = None
    #: The job's `reason.code`.
    reason: str | None = None
    exit_code: int | None = None


class RunTimedOut(RunFailed):
    code, status, title = "timed_out", 504, "The run took too long and was stopped"


def _tree(root: type[GurneyError]) -> dict[str, type[GurneyError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


#: Every error class by its code. Internal stands for the root.
BY_CODE: dict[str, type[GurneyError]] = _tree(GurneyError) | {"internal": Internal}


def from_body(body: ErrorBody) -> GurneyError:
    """Return the error that `body` tells of; a code from a newer peer becomes `Internal`."""
    kind = BY_CODE.get(body.code, Internal)
    error = kind.__new__(kind)
    GurneyError.__init__(error, body.message, body.errors, body.retry_after_s)
    return error
