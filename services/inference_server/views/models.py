"""Models, for both versions."""

from aiohttp import web

from gurney.errors import Invalid, TooLarge
from services.inference_server import repository
from services.inference_server.call import Call
from services.inference_server.documents import Model
from services.inference_server.replies import (
    AWAY,
    NOT_FOUND,
    UNPROCESSABLE,
    Refused,
    fault,
    model_json,
    model_json_v2,
    public_model,
    stream,
)
from services.inference_server.stock import MEDIA


async def public_index(call: Call) -> web.Response:
    return web.json_response([public_model(each) for each in await repository.models(call.server.store)])


async def index(call: Call) -> web.Response:
    return web.json_response([model_json(each) for each in await repository.models(call.server.store)])


async def create(call: Call) -> web.Response:
    return web.json_response(model_json(await _created(call)))


async def create_v2(call: Call) -> web.Response:
    return web.json_response(model_json_v2(await _created(call)))


async def _created(call: Call) -> Model:
    said, archive, part = call.query.model_available, call.archive, ["body", call.route.part]
    if said and archive is None:
        raise Refused(UNPROCESSABLE, [fault(part, "is missing, but model_available is true")])
    if archive is not None and not said:
        raise Refused(UNPROCESSABLE, [fault(["query", "model_available"], "must be true where there is a file")])
    asked = call.query.model_dump(exclude={"model_available"})
    try:
        return await call.server.models.post(asked, call.route.format, archive)
    except (Invalid, TooLarge) as error:
        about_tag = archive is None or any(each.field == "urn" for each in error.errors)
        raise Refused(UNPROCESSABLE, [fault(["query", "container_tag"] if about_tag else part, str(error))]) from error


async def by_uid(call: Call) -> web.Response:
    return web.json_response(model_json(await repository.model_of(call.server.store, call.text("uid"))))


async def by_name(call: Call) -> web.Response:
    return web.json_response(model_json(await repository.model_named(call.server.store, call.text("name"))))


async def find_v2(call: Call) -> web.Response:
    return web.json_response(model_json_v2(await _found(call)))


async def _found(call: Call) -> Model:
    number, name = call.query.model_id, call.query.human_readable_id
    if number is not None:
        return await repository.model_numbered(call.server.store, number)
    if name is not None:
        return await repository.model_named(call.server.store, name)
    raise Refused(400, "model_id or human_readable_id is needed")


async def archive(call: Call) -> web.StreamResponse:
    """Send what was posted, as it was."""
    uid = call.query.uid or call.text("uid")
    return await _sent(call, await repository.model_of(call.server.store, uid))


async def archive_v2(call: Call) -> web.StreamResponse:
    return await _sent(call, await repository.model_numbered(call.server.store, call.query.model_id))


async def _sent(call: Call, model: Model) -> web.StreamResponse:
    source = call.server.tasks.archive(model)
    return await stream(
        call.request, source, MEDIA[model.format], absent=Refused(NOT_FOUND, repository.NO_MODEL), away=AWAY
    )
