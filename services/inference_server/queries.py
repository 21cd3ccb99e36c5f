"""What clients say in queries."""

from typing import Annotated

from pydantic import AfterValidator, Field

from services.inference_server.call import Query
from services.inference_server.documents import Status

MOST_NAME, MOST_TAG, MOST_TEXT, MOST_UID = 1024, 1024, 65_536, 255


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must consist of printable characters")
    return text


def _plain(uid: str) -> str:
    if "/" in uid:
        raise ValueError("must have no slash")
    return _printable(uid)


def _status(status: int) -> int:
    if status not in {Status.FAILED, Status.FINISHED, Status.RUNNING}:
        raise ValueError("must be 0 (failed), 1 (finished) or 2 (running)")
    return status


Name = Annotated[str, Field(min_length=1, max_length=MOST_NAME), AfterValidator(_printable)]
Uid = Annotated[str, Field(min_length=1, max_length=MOST_UID), AfterValidator(_plain)]
Said = Annotated[int, AfterValidator(_status)]


class ModelQuery(Query):
    container_tag: Annotated[str, Field(min_length=1, max_length=MOST_TAG), AfterValidator(_printable)]
    human_readable_id: Name
    description: Annotated[str, Field(max_length=MOST_TEXT)] | None = None
    #: There is static content, in the file.
    model_available: bool = False
    use_gpu: bool = True


class ModelQueryV2(ModelQuery):
    dump_logs: bool = False
    pull_on_every_run: bool = False


class TaskQuery(Query):
    model_human_readable_id: Name


class PrivateTaskQuery(TaskQuery):
    #: By default one is made up.
    uid: Uid | None = None


class StatusQuery(Query):
    uid: str
    status: Said


class TaskQueryV2(Query):
    human_readable_id: Name


class UidQuery(Query):
    uid: str


class NumberQuery(Query):
    task_id: int


class StatusQueryV2(NumberQuery):
    status: Said


class FindModelQuery(Query):
    model_id: int | None = None
    human_readable_id: str | None = None


class ModelNumberQuery(Query):
    model_id: int


class ZipQuery(Query):
    uid: str | None = None
