"""The façade's own documents: of a model and a task what Gurney's MAP, payload and job cannot carry."""

from enum import IntEnum, StrEnum
from typing import Literal

from gurney.ids import digest_of
from gurney.model.base import Dated, Document, Timestamp


class Status(IntEnum):
    """What clients are told of a task."""

    PENDING = -1
    FAILED = 0
    FINISHED = 1
    RUNNING = 2


class Todo(StrEnum):
    """What is still owed to a task. Whoever has the time does it; each step may be done again."""

    POST = "post"  #: it is being posted: nobody knows its uid yet
    SUBMIT = "submit"  #: its input is safe; its job is to be made
    WATCH = "watch"  #: its job lives; at its end the task is settled
    STOP = "stop"  #: its status was said by somebody: its job is to stop
    REMOVE = "remove"  #: it is deleted; its job and its bytes are to go
    NOTHING = "nothing"


#: Of what is posted: the version that a client speaks says which.
Format = Literal["zip", "tar"]


class Numbered(Dated):
    """`id` is the uid that clients see. Of a task it is all that they need to fetch its output: it is never logged."""

    #: The integer that clients see as `id`.
    number: int
    format: Format = "zip"
    #: The process that is posting it, or has posted it.
    poster: str = ""
    #: Payload with the archive as it was posted, in one file.
    upload: str | None = None

    @property
    def label(self) -> str:
        """Return what tells Gurney's things that are of this one; it does not tell the uid."""
        return f"{type(self).__name__.lower()}-{self.number}-{digest_of(self.id)[:12]}"

    def unique_keys(self) -> tuple[str, ...]:
        return (f"number:{self.number}",)


class Model(Numbered):
    human_readable_id: str
    description: str | None = None
    #: As it was posted: an image reference, or a URN of Gurney.
    container_tag: str
    use_gpu: bool = True
    #: Version 2.0 keeps these; logs are always kept here.
    dump_logs: bool = False
    pull_on_every_run: bool = False
    #: Payload with the files of what was posted, which runs find in /model.
    content: str | None = None
    #: The MAP that its tasks run; None: it is being posted.
    map: str | None = None

    def unique_keys(self) -> tuple[str, ...]:
        return (*super().unique_keys(), f"name:{self.human_readable_id}")


class Task(Numbered):
    #: The model's uid.
    model: str
    model_human_readable_id: str
    todo: Todo
    #: Payload of the files that its run finds in /input, until the job has it.
    input: str | None = None
    job: str | None = None
    #: None: what its job says.
    status: Status | None = None
    #: Its job has succeeded: its results are the output, where none was posted.
    has_results: bool = False
    #: Payload with the output that was posted through the private API, in one file.
    output: str | None = None
    dispatched_at: Timestamp | None = None
    finished_at: Timestamp | None = None
    #: Code of why it failed.
    reason: str | None = None
    is_deleted: bool = False

    def unique_keys(self) -> tuple[str, ...]:
        return (*super().unique_keys(), *((f"job:{self.job}",) if self.job else ()))


class Poster(Document):
    """A process of the façade, which says now and then that it lives: what it was posting when it died is undone."""

    seen_at: Timestamp


class Counter(Document):
    """Numbers given out: `id` says of what."""

    last: int = 0
