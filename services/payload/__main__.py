"""The composition root of the payload service."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

from gurney import clock, subjects
from gurney.documents.port import Documents
from gurney.ids import is_id
from gurney.model.job import JobRefs, JobsAlive
from gurney.model.map import MapRefs
from gurney.objects.port import Objects
from gurney.service import Parts, Service
from gurney.settings import Settings
from services.payload.desk import furnish
from services.payload.handlers import PayloadHandlers
from services.payload.handlers_claims import ClaimHandlers
from services.payload.handlers_files import FileHandlers
from services.payload.repository import COLLECTIONS
from services.payload.sweep import Sweep

#: A key that no object has: to ask for it shows whether the store answers.
NO_OBJECT = "health/none"


def build(
    settings: Settings,
    *,
    documents: Documents,
    objects: Objects,
    alone: bool = False,
    now: Callable[[], datetime] = clock.now,
) -> Service:
    """Return the service. `alone`: none but this process moves bytes or makes jobs, so what began before is dead."""
    service = Service("payload", settings, documents, COLLECTIONS)

    async def alive(holders: Sequence[str]) -> JobsAlive:
        maps = tuple(each for each in holders if is_id(each, "map"))
        jobs = tuple(each for each in holders if not is_id(each, "map"))
        found = await service.bus.request(subjects.JOB_ALIVE, JobRefs(jobs=jobs)) if jobs else JobsAlive()
        if not maps:
            return found
        held = await service.bus.request(subjects.MAP_ALIVE, MapRefs(maps=maps))
        return found.but(live=(*found.live, *held.live))

    secret = settings.run_secret.get_secret_value()
    desk = furnish(service.store, objects, secret=secret, alive=alive, now=now)
    payload, file, claim = PayloadHandlers(desk), FileHandlers(desk), ClaimHandlers(desk)
    return service.does(
        Parts(
            answers={
                subjects.PAYLOAD_CREATE: payload.create,
                subjects.PAYLOAD_OPEN: payload.open,
                subjects.PAYLOAD_DISCARD: payload.discard,
                subjects.PAYLOAD_GET: payload.get,
                subjects.PAYLOAD_LIST: payload.list,
                subjects.PAYLOAD_RENAME: payload.rename,
                subjects.PAYLOAD_DELETE: payload.delete,
                subjects.PAYLOAD_FILES: file.files,
                subjects.PAYLOAD_SIGN: file.sign,
                subjects.PAYLOAD_BEGIN: file.begin,
                subjects.PAYLOAD_URLS: file.urls,
                subjects.PAYLOAD_COMMIT: file.commit,
                subjects.PAYLOAD_ABANDON: file.abandon,
                subjects.PAYLOAD_REMOVE: file.remove,
                subjects.PAYLOAD_LOG: file.log,
                subjects.PAYLOAD_CLAIM: claim.claim,
                subjects.PAYLOAD_RESTORE: claim.restore,
                subjects.PAYLOAD_RELEASE: claim.release,
                subjects.PAYLOAD_END: claim.end,
                subjects.PAYLOAD_FINALIZE: claim.finalize,
                subjects.PAYLOAD_DROP: claim.drop,
            },
            reconcile=Sweep(desk, timedelta(seconds=settings.upload_timeout), alone=alone).run,
            tasks=[desk.deletion.run],
            resources=[_opened(objects)],
            checks={"objects": partial(objects.stat, NO_OBJECT)},
        )
    )


@contextlib.asynccontextmanager
async def _opened(objects: Objects) -> AsyncIterator[None]:
    await objects.open()
    try:
        yield
    finally:
        await objects.close()
