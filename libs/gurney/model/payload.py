"""Payloads, files, claims and what crosses NATS about them."""

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from gurney.model.access import Caller
from gurney.model.base import Document, Idempotency, Input, InputLabels, Labels, Message, Owned, Timestamp
from gurney.model.common import Filtered


class PayloadState(StrEnum):
    DRAFT = "draft"  #: results of a run that is not bound yet
    FILLING = "filling"  #: an archive is unpacked into it; nobody sees it until all of it is in
    OPEN = "open"
    DELETING = "deleting"  #: nobody sees it any more; a sweep finishes the work


class Payload(Owned):
    PRIVATE: ClassVar[frozenset[str]] = frozenset({"idempotency", "run", "doomed", "transient", "released"})

    name: str | None = None
    labels: Labels = {}
    state: PayloadState
    #: Contents stay when the last claim goes.
    keep: bool = False
    #: Results of an attempt that failed.
    partial: bool = False
    #: The job whose results these are; of a draft, may become.
    job: str | None = None
    #: The run that fills this draft, kept after it was bound.
    run: str | None = None
    #: Its deletion can no longer be undone: nothing held it once it was marked. A doomed draft lost to another run.
    doomed: bool = False
    #: Made for one job, by who waits for its end: it goes when no job claims it, also when none ever did.
    transient: bool = False
    #: A job that had it was finalized while another claimed it: it goes with its last claim, also where that is swept.
    released: bool = False
    updated_at: Timestamp
    # Derived when asked for, never stored:
    files: int = 0
    bytes: int = 0
    #: The first ten ids of jobs, and of MAPs, with a holding claim.
    held_by: tuple[str, ...] = ()
    #: How many claims there are, holding and keeping.
    claims: int = 0

    def unique_keys(self) -> tuple[str, ...]:
        if self.doomed or self.state is PayloadState.FILLING:  # of two it is the first to be opened that counts
            return ()
        named = (f"name:{self.project}:{self.name}",) if self.name else ()
        drafted = (f"run:{self.run}",) if self.run else ()
        bound = (f"job:{self.job}",) if self.job and self.state is not PayloadState.DRAFT else ()
        return (*super().unique_keys(), *named, *drafted, *bound)


class Content(Message):
    """The bytes that a path of a payload has."""

    key: str
    size: int
    sha256: str
    created_at: Timestamp


class Upload(Message):
    """An upload that has begun: its id is its object's key, too."""

    key: str
    begun_at: Timestamp


class Mark(Message):
    """Who changes a file, from marking it until the change is made or given up."""

    id: str
    at: Timestamp


class File(Document):
    """One path of one owner (a payload, or a job whose logs these are): everything about it in one document.

    So a commit, a replacement and an abandoned upload are one compare-and-set each.
    """

    #: Payload id, or job id for logs.
    owner: str
    path: str
    #: An empty folder: listed, not counted.
    folder: bool = False
    #: None: not visible yet, or removed.
    content: Content | None = None
    pending: tuple[Upload, ...] = ()
    #: Keys whose bytes nobody can reach any more.
    garbage: tuple[str, ...] = ()
    #: Set while a commit or removal waits to see whether a job holds the payload.
    changing: Mark | None = None
    #: Id of the mark under which the content was changed last, empty before.
    last_change: str = ""
    #: Since when there has been something pending, garbage or changing: where the sweep looks for what a crash left.
    unsettled: Timestamp | None = None


class FileView(Message):
    """A file as clients see it. An empty folder is one whose path ends in `/`."""

    path: str
    size: int
    sha256: str
    created_at: Timestamp


ClaimKind = Literal["input", "result", "static"]


class Claim(Document):
    """A job's claim on a payload: `input` or `result`; `holding` until the job ends, then `keeping`.

    Of a MAP it is `static`, and holds for as long as the MAP may run; `job` is the MAP then.
    """

    payload: str
    job: str
    kind: ClaimKind
    state: Literal["holding", "keeping"]
    created_at: Timestamp


class CreatePayload(Input):
    """Body of POST /v1/payloads."""

    name: str | None = None
    labels: InputLabels = {}
    keep: bool = False


class PayloadCreate(Message):
    """`id`: who asks chose it, and so knows by the answer whether it is he who made the payload.

    `filling`: it is to be opened, or discarded, by who asks; until then nobody finds it, and only its id reaches it.
    """

    id: str | None = None
    caller: Caller
    body: CreatePayload
    idempotency: Idempotency | None = None
    filling: bool = False
    transient: bool = False


class PayloadList(Filtered):
    name: str | None = None
    state: PayloadState | None = None


class FileList(Message):
    """Who asks: a caller, or a run by its token."""

    caller: Caller | None = None
    token: str | None = None
    payload: str
    prefix: str = ""
    limit: int = Field(default=100, ge=1, le=1000)
    cursor: str | None = None


class RemoveFile(Message):
    """`after`: the last change of the file that the asker knows; where there was another, he is to look again."""

    caller: Caller
    payload: str
    path: str
    after: str | None = None


class SignedFile(Message):
    """A file and the URL that reads it."""

    file: FileView
    url: str
    last_change: str = ""


class SignFiles(Message):
    """Asks for URLs of at most 256 files, for example to stage an input."""

    caller: Caller | None = None
    token: str | None = None
    payload: str
    paths: tuple[str, ...] = Field(max_length=256)
    #: The URLs are for browsers, which save files under their names.
    named: bool = False


class SignedFiles(Message):
    items: tuple[SignedFile, ...]


class BeginUploads(Message):
    """Begins uploads of at most 256 paths. `owner` is a payload, by id or name.

    With a run's token it is `results`, the draft of this run, made when it is first needed, or `log`, whose one path
    is `<attempt>.log`. An empty folder (a path that ends in `/`) has no bytes: commit it with size 0, PUT nothing.
    """

    caller: Caller | None = None
    token: str | None = None
    owner: str
    paths: tuple[str, ...] = Field(max_length=256)


class BegunUpload(Message):
    path: str
    key: str
    url: str
    last_change: str = ""


class BegunUploads(Message):
    #: The owner's id, which the commit names.
    owner: str
    items: tuple[BegunUpload, ...]


class WantedParts(Message):
    """Which URLs are wanted of an upload in parts, by the numbers of the parts; `upload` None: it is to begin."""

    upload: str | None = None
    first: int = Field(default=1, ge=1, le=10_000)
    count: int = Field(ge=1, le=256)


class SignUpload(Message):
    """Asks for fresh URLs of an upload that has begun; with `parts` for those that move it in parts."""

    caller: Caller | None = None
    token: str | None = None
    owner: str
    path: str
    key: str
    parts: WantedParts | None = None


class SignedUpload(Message):
    #: Creates the object whole.
    put: str
    #: Reads it: who got no answer to his PUT sees whether it has made the object.
    get: str
    #: The upload in parts that all below are of.
    upload: str | None = None
    #: Each PUTs one part, from the first that was wanted on; fewer than wanted where 10,000 is passed.
    parts: tuple[str, ...] = ()
    #: POST of the list of parts: makes the object of them, if there is none yet.
    complete: str | None = None
    #: DELETE gives the parts up.
    abort: str | None = None
    last_change: str = ""


class Uploaded(Message):
    """`after` as in the removal of a file: what came too late to be waited for undoes nothing that came since."""

    path: str
    key: str
    size: int
    sha256: str
    after: str | None = None


class CommitUploads(Message):
    """Makes uploaded files visible: each path on its own, all or an error that names the first that failed.

    `owner` as in the begin, or the id that it answered. A repeated commit of the same keys succeeds again.
    """

    caller: Caller | None = None
    token: str | None = None
    owner: str
    items: tuple[Uploaded, ...] = Field(max_length=256)


class Committed(Message):
    items: tuple[FileView, ...]
    #: The paths that had content before.
    replaced: tuple[str, ...] = ()


class AbandonUploads(Message):
    caller: Caller | None = None
    token: str | None = None
    owner: str
    #: Path and key of each.
    items: tuple[tuple[str, str], ...] = Field(max_length=256)


class ClaimInput(Message):
    """job or map -> payload: insert a holding claim, wait until no file is changing, return the payload."""

    caller: Caller
    payload: str
    job: str
    kind: Literal["input", "static"] = "input"


class RestoreClaims(Message):
    """job -> payload: live jobs whose input claims have to be there (reconciler)."""

    #: (payload, job)
    claims: tuple[tuple[str, str], ...] = Field(max_length=256)


class ReleaseClaim(Message):
    """job or map -> payload: the create was given up, or the MAP runs no more: its claim goes."""

    payload: str
    job: str
    kind: Literal["input", "static"] = "input"


class EndPayloads(Message):
    """job -> payload, before a terminal state: bind the run's results to the job, end the hold on the input.

    Idempotent; only one run can ever be bound to a job. `run` None: there are no results.
    """

    job: str
    payload: str
    run: str | None
    partial: bool = False
    project: str
    created_by: str


class Ended(Message):
    """What was bound."""

    results: str | None
    files: int = 0
    bytes: int = 0


class FinalizeInput(Message):
    """job -> payload: drop the input claim; contents go with the last claim unless `keep`."""

    job: str
    payload: str


class DropJob(Message):
    """job -> payload: the job is deleted: all its claims go, results with their last one, and its logs.

    `wait`: the answer comes when the bytes are gone, too.
    """

    job: str
    wait: bool = False


class LogRef(Message):
    """edge -> payload: the kept log of one attempt. The caller's right to the job was checked by the job's owner."""

    job: str
    attempt: int


class PayloadEvent(Message):
    """Data of `payload.<event>.<payload_id>`."""

    id: str
    project: str
    created_by: str
    name: str | None
    job: str | None
    at: Timestamp
    #: The path that changed, for `changed`.
    path: str | None = None
