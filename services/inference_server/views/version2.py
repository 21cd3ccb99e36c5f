"""Tasks of version 2.0."""

from aiohttp import web

from gurney.errors import NotFound
from services.inference_server import repository
from services.inference_server.call import Call
from services.inference_server.documents import Status
from services.inference_server.machine import Seen
from services.inference_server.replies import Refused, task_json_v2
from services.inference_server.views import tasks

UNKNOWN = 500


async def create(call: Call) -> web.Response:
    return await _told(call, await call.server.tasks.seen(await tasks.posted(call, call.query.human_readable_id)))


async def output(call: Call) -> web.StreamResponse:
    try:
        seen = await call.server.tasks.of(call.query.uid)
    except NotFound as error:
        raise Refused(UNKNOWN, str(error)) from None
    return await tasks.output_of(call, seen)


async def delete(call: Call) -> web.Response:
    return await _told(call, await call.server.tasks.delete(call.query.uid, also_running=True))


async def get(call: Call) -> web.Response:
    return await _told(call, await call.server.tasks.numbered(call.query.task_id))


async def put(call: Call) -> web.Response:
    task = await repository.task_numbered(call.server.store, call.query.task_id)
    return await _told(call, await call.server.tasks.say(task.id, Status(call.query.status)))


async def _told(call: Call, seen: Seen) -> web.Response:
    """Answer with the task and its model."""
    model = await repository.model_of(call.server.store, seen.task.model)
    return web.json_response(task_json_v2(seen, model))
