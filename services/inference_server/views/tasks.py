"""Tasks of version 1.2. What the public listener refuses is nested once more: it used to pass on what another said."""

from aiohttp import web

from gurney.errors import NotFound
from services.inference_server import repository
from services.inference_server.call import Call
from services.inference_server.documents import Status, Task
from services.inference_server.machine import Seen
from services.inference_server.patience import patiently
from services.inference_server.replies import (
    ALIVE,
    AWAY,
    MODEL_NOT_FOUND,
    NO_OUTPUT,
    NOT_FOUND,
    TOLD,
    Refused,
    require_output,
    stream,
    task_json,
)
from services.inference_server.stock import MEDIA


async def create(call: Call) -> web.Response:
    """Answer with the uid alone."""
    return web.json_response((await posted(call, call.query.model_human_readable_id)).id)


async def private_create(call: Call) -> web.Response:
    task = await posted(call, call.query.model_human_readable_id, call.query.uid)
    return web.json_response(task_json(await call.server.tasks.seen(task)))


async def posted(call: Call, name: str, uid: str | None = None) -> Task:
    if call.archive is None:
        raise RuntimeError("its route needs a file")
    try:
        model = await patiently(lambda: repository.model_named(call.server.store, name))
    except NotFound:
        raise Refused(MODEL_NOT_FOUND, "ModelNotFound") from None
    return await call.server.tasks.post(model, call.route.format, call.archive, uid)


async def public_output(call: Call) -> web.StreamResponse:
    try:
        return await output(call)
    except Refused as error:
        raise Refused(error.status, {"detail": error.detail}) from None
    except NotFound:
        raise Refused(NOT_FOUND, {"detail": TOLD[NOT_FOUND]}) from None


async def output(call: Call) -> web.StreamResponse:
    return await output_of(call, await call.server.tasks.of(call.text("uid")))


async def output_of(call: Call, seen: Seen) -> web.StreamResponse:
    require_output(seen)
    source = call.server.tasks.output(seen.task, call.route.format)
    return await stream(
        call.request, source, MEDIA[call.route.format], absent=Refused(NO_OUTPUT, TOLD[NO_OUTPUT]), away=ALIVE
    )


async def public_delete(call: Call) -> web.Response:
    try:
        seen = await call.server.tasks.delete(call.text("uid"), also_running=True)
    except NotFound:
        raise Refused(NOT_FOUND, {"detail": TOLD[NOT_FOUND]}) from None
    return web.json_response(task_json(seen))


async def delete(call: Call) -> web.Response:
    return web.json_response(task_json(await call.server.tasks.delete(call.text("uid"), also_running=False)))


async def index(call: Call) -> web.Response:
    return web.json_response([task_json(each) async for each in call.server.tasks.all()])


async def get(call: Call) -> web.Response:
    return web.json_response(task_json(await call.server.tasks.of(call.text("uid"))))


async def put(call: Call) -> web.Response:
    return web.json_response(task_json(await call.server.tasks.say(call.query.uid, Status(call.query.status))))


async def input_archive(call: Call) -> web.StreamResponse:
    """Send what was posted, as it was."""
    task = await repository.task_of(call.server.store, call.text("uid"))
    source = call.server.tasks.archive(task)
    return await stream(call.request, source, MEDIA[task.format], absent=Refused(NOT_FOUND, TOLD[NOT_FOUND]), away=AWAY)


async def post_output(call: Call) -> web.Response:
    if call.archive is None:
        raise RuntimeError("its route needs a file")
    return web.json_response(task_json(await call.server.tasks.post_output(call.text("uid"), call.archive)))
