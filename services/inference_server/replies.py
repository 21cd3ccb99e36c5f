"""What clients are told: JSON as InferenceServer has it, refusals with its status codes, bytes as they come."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from gurney.client.http import Incoming, Json
from gurney.errors import GurneyError, NotFound, Unavailable
from services.inference_server.documents import Model, Status
from services.inference_server.machine import Seen

#: Its own status codes; they have no reason phrase.
MODEL_NOT_FOUND, ALIVE, FAILED, NO_OUTPUT, NOT_FOUND = 550, 551, 552, 553, 554
NO_TOKEN, UNPROCESSABLE, AWAY = 400, 422, 503
TOLD = {
    ALIVE: "Task pending",
    FAILED: "Task failed",
    NO_OUTPUT: "Task finished, but output zip not found",
    NOT_FOUND: "Task not found",
}

#: pydantic's kinds of faults, as clients know them from its first version.
_KINDS = {
    "missing": ("field required", "value_error.missing"),
    "bool_parsing": ("value could not be parsed to a boolean", "type_error.bool"),
    "int_parsing": ("value is not a valid integer", "type_error.integer"),
}


class Refused(Exception):
    """A request that is answered with a status and a `detail`."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(f"{status}")
        self.status = status
        self.detail = detail


def refused(status: int, detail: Any) -> web.Response:
    return web.json_response({"detail": detail}, status=status)


def fault(loc: Sequence[str], message: str, kind: str = "value_error") -> Json:
    """Return one entry of a 422."""
    return {"loc": list(loc), "msg": message, "type": kind}


def missing(*loc: str) -> Json:
    return fault(loc, *_KINDS["missing"])


def faults_of(error: ValidationError) -> list[Json]:
    """Return the entries of a 422 for query parameters."""
    found = []
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        message, kind = _KINDS.get(each["type"], (each["msg"], f"value_error.{each['type']}"))
        found.append(fault(["query", *map(str, each["loc"])], message, kind))
    return found


# --- JSON ---


def time(at: datetime | None) -> str | None:
    """Return a time as they have it: UTC, without saying so."""
    return None if at is None else at.replace(tzinfo=None).isoformat(timespec="microseconds")


def public_model(model: Model) -> Json:
    return {
        "uid": model.id,
        "human_readable_id": model.human_readable_id,
        "description": model.description,
        "container_tag": model.container_tag,
        "use_gpu": model.use_gpu,
        "model_available": model.upload is not None,
        "model_volume_id": model.id if model.upload else None,
    }


def model_json(model: Model) -> Json:
    return {**public_model(model), "id": model.number, "model_zip": model.upload}


def task_json(seen: Seen) -> Json:
    task = seen.task
    return {
        "id": task.number,
        "uid": task.id,
        "model_human_readable_id": task.model_human_readable_id,
        "input_zip": task.upload,
        "output_zip": _output_of(seen),
        "input_volume_id": task.input,
        "output_volume_id": task.job,
        **_course(seen),
    }


def task_json_v2(seen: Seen, model: Model | None) -> Json:
    task = seen.task
    return {
        "id": task.number,
        "uid": task.id,
        "model_id": model.number if model else None,
        "model": model_json_v2(model) if model else None,
        "input_tar": task.upload,
        "output_tar": _output_of(seen),
        **_course(seen),
    }


def model_json_v2(model: Model) -> Json:
    return {
        "id": model.number,
        **public_model(model),
        "model_tar": model.upload,
        "dump_logs": model.dump_logs,
        "pull_on_every_run": model.pull_on_every_run,
    }


def _course(seen: Seen) -> Json:
    return {
        "datetime_created": time(seen.task.created_at),
        "datetime_dispatched": time(seen.dispatched_at),
        "datetime_finished": time(seen.finished_at),
        "status": int(seen.status),
        "is_deleted": seen.task.is_deleted,
    }


def _output_of(seen: Seen) -> str | None:
    return (seen.task.output or seen.task.job) if seen.has_output else None


# --- bytes ---


def require_output(seen: Seen) -> None:
    """Raise `Refused` for a task that has no output yet, or will have none."""
    match seen.status:
        case Status.PENDING | Status.RUNNING:
            raise Refused(ALIVE, TOLD[ALIVE])
        case Status.FAILED:
            raise Refused(FAILED, TOLD[FAILED])
        case Status.FINISHED if not seen.has_output:
            raise Refused(NO_OUTPUT, TOLD[NO_OUTPUT])


async def stream(
    request: web.Request, source: AbstractAsyncContextManager[Incoming], media: str, *, absent: Refused, away: int
) -> web.StreamResponse:
    """Send bytes as they come. Raises `absent`, or `Refused` with `away`, where they do not begin to come."""
    response = web.StreamResponse(headers={"Content-Type": media})
    try:
        async with source as incoming:
            response.content_length = incoming.size
            await response.prepare(request)
            async for chunk in incoming.chunks:
                await response.write(chunk)
            await response.write_eof()
    except ConnectionError:  # the client has gone, as one does that only asks whether there is an output
        if not response.prepared:
            raise
    except GurneyError as error:
        match error:
            case _ if response.prepared:
                if request.transport is not None:
                    request.transport.abort()  # the status is out: only a broken connection tells the client
            case NotFound():
                raise absent from error
            case Unavailable():
                raise Refused(away, TOLD.get(away, str(error))) from error
            case _:
                raise
    return response
