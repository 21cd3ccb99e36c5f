"""What a client may ask, and how it is frozen: a run needs nothing else, whatever becomes of the MAP. Pure."""

import unicodedata
from collections.abc import Iterator
from datetime import datetime, timedelta

from gurney.errors import FieldError, Invalid, MapNotReady
from gurney.model.job import CreateJob, Job, JobCreate, MapRef, RunRequest
from gurney.model.map import Description, Map, MapState
from gurney.model.payload import Payload
from gurney.model.resources import Resources
from gurney.settings import GIB, MIB, Settings
from services.job import machine

#: What a job gets when neither it nor its MAP say anything: one core and 1 GiB.
DEFAULT_RESOURCES = Resources(cpu=1.0, memory=GIB)

#: How long a transient job is believed to be awaited since who waits for it last said so.
AWAITED = timedelta(seconds=30)

MAX_HANDLERS = 100
#: Longest reference to a MAP or payload, GPU model and compute capability, in characters.
MAX_TEXT = 128
_PEBIBYTE = 1024 * 1024 * GIB

#: Field of `resources` -> least, most, unit.
BOUNDS: dict[str, tuple[float, float, str]] = {
    "cpu": (0.001, 4096, "cores"),
    "memory": (MIB, _PEBIBYTE, "bytes"),
    "shared_memory": (0, _PEBIBYTE, "bytes"),
    "gpus": (0, 1024, "GPUs"),
    "gpu_memory": (1, _PEBIBYTE, "bytes"),
    "gpu_share": (1, _PEBIBYTE, "bytes"),
}


def check(body: CreateJob) -> None:
    """Raise `Invalid` that names every field at fault; labels and numbers of one field are checked by the model."""
    _refuse(list(_faults(body)))


def ready(document: Map, *, approved_only: bool) -> Description:
    """Return what a MAP's manifests say; raises `MapNotReady` where nobody may run it."""
    if document.state is not MapState.READY or document.description is None or document.digest is None:
        raise MapNotReady(f"the MAP {document.id} is {document.state}")
    if approved_only and not document.approved:
        raise MapNotReady(f"the MAP {document.id} is not approved, and only approved MAPs may run here")
    return document.description


def new_job(
    job_id: str, question: JobCreate, document: Map, payload: Payload, *, settings: Settings, now: datetime
) -> Job:
    """Return the job as accepted, its request frozen; raises `MapNotReady` or `Invalid`."""
    body, caller = question.body, question.caller
    description = ready(document, approved_only=settings.require_approval)
    resources = _resources(body.resources, description.resources)
    said = (body.timeout_s, description.timeout_s, settings.job_timeout)
    timeout = next(each for each in said if each is not None)
    digest = document.digest or ""
    return Job(
        id=job_id,
        project=caller.project,
        created_by=caller.subject,
        created_at=now,
        idempotency=question.idempotency,
        name=unicodedata.normalize("NFC", body.name) if body.name else None,
        labels=body.labels,
        map=MapRef(id=document.id, name=document.name, urn=document.urn, digest=digest),
        payload=payload.id,
        state=machine.INITIAL,
        priority=body.priority,
        resources=resources,
        timeout_s=timeout,
        admission=body.admission or settings.admission,
        retries=body.retries,
        handlers=None if body.handlers is None else tuple(dict.fromkeys(body.handlers)),
        transient=question.transient,
        awaited_until=now + AWAITED if question.transient else None,
        request=RunRequest(
            urn=document.urn,
            digest=digest,
            generation=description.generation,
            command=description.command,
            environment=description.environment,
            working_directory=description.working_directory,
            input_path=description.input_path,
            output_path=description.output_path,
            payload=payload.id,
            resources=resources,
            gpu_sharing=document.gpu_sharing,
            timeout_s=timeout,
            transient=question.transient,
            hardening=document.hardening.mode,
            network=description.network and settings.allow_network,
            content=description.content,
        ),
    )


def _resources(asked: Resources | None, described: Resources) -> Resources:
    """Return what a job gets: what it asks, over what its MAP says, over the defaults."""
    laid = described.over(DEFAULT_RESOURCES)
    merged = asked.over(laid) if asked else laid
    _refuse(list(_resource_faults(merged)))
    return merged


def _refuse(faults: list[FieldError]) -> None:
    if faults:
        raise Invalid.fields(faults)


def _faults(body: CreateJob) -> Iterator[FieldError]:
    yield from _text_faults("map", body.map)
    yield from _text_faults("payload", body.payload)
    if body.name is not None:
        yield from _text_faults("name", unicodedata.normalize("NFC", body.name))
    if body.resources:
        yield from _resource_faults(body.resources)
    yield from _handler_faults(body.handlers or ())


def _text_faults(field: str, text: str) -> Iterator[FieldError]:
    if not 1 <= len(text) <= MAX_TEXT:
        yield FieldError(field=field, message=f"has {len(text)} characters, 1 to {MAX_TEXT} are allowed")
    elif not text.isprintable():
        yield FieldError(field=field, message="must have printable characters only")


def _handler_faults(handlers: tuple[str, ...]) -> Iterator[FieldError]:
    if len(handlers) > MAX_HANDLERS:
        yield FieldError(field="handlers", message=f"has {len(handlers)} handlers, at most {MAX_HANDLERS} are allowed")
    for handler in handlers[:MAX_HANDLERS]:
        yield from _text_faults("handlers", handler)


def _resource_faults(resources: Resources) -> Iterator[FieldError]:
    for name, (least, most, unit) in BOUNDS.items():
        value = getattr(resources, name)
        if value is not None and not least <= value <= most:
            message = f"is {value}, {least} to {most} {unit} are allowed"
            yield FieldError(field=f"resources.{name}", message=message)
    for name in ("gpu_model", "compute_capability"):
        if (text := getattr(resources, name)) is not None:
            yield from _text_faults(f"resources.{name}", text)
