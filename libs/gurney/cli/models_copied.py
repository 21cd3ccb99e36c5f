"""Models of one InferenceServer, posted to another: one that fails does not stop the rest."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError

from gurney.cli.output import size
from gurney.cli.progress import bar
from gurney.client.http import Json
from gurney.client.inference_server import InferenceServer
from gurney.client.zips import outgoing, received, temporary
from gurney.errors import GurneyError


class _Model(BaseModel):
    """What a server says of a model. What else it says does not matter here."""

    human_readable_id: str
    container_tag: str
    uid: str | None = None
    description: str | None = None
    use_gpu: bool | None = None
    model_available: bool | None = None
    model_zip: Any = None

    @property
    def has_content(self) -> bool:
        return bool(self.model_available or self.model_zip)


async def copied(
    old: InferenceServer, new: InferenceServer, only: Sequence[str] | None, *, dry_run: bool, quiet: bool
) -> AsyncIterator[Json]:
    """Yield what became of each model; raises where one of the servers does not tell its models."""
    found = await old.models()
    there = {str(each.get("human_readable_id")): each.get("container_tag") for each in await new.models()}
    names = {_name(each) for each in found}
    for name in only or ():
        if name not in names:
            yield _line(name, "failed", "the old server has no such model")
    for each in found:
        if only is not None and _name(each) not in only:
            continue
        try:
            model = _Model.model_validate(each)
        except ValidationError as error:
            fields = ", ".join(str(fault["loc"][0]) for fault in error.errors() if fault["loc"])
            yield _line(_name(each), "failed", f"cannot be read: {fields or 'it is no object'}")
            continue
        yield await _copied(old, new, model, there, dry_run=dry_run, quiet=quiet)


async def _copied(
    old: InferenceServer, new: InferenceServer, model: _Model, there: dict[str, Any], *, dry_run: bool, quiet: bool
) -> Json:
    name, tag = model.human_readable_id, model.container_tag
    line = {"container_tag": tag, "content": "yes" if model.has_content else None}
    if name in there:
        other = "" if there[name] == tag else f", with another image: {there[name]}"
        return _line(name, "skipped", f"is there already{other}", **line)
    if dry_run:
        return _line(name, "would be copied", **line)
    try:
        sent = await _posted(old, new, model, quiet=quiet)
    except (GurneyError, OSError) as error:
        return _line(name, "failed", str(error), **line)
    there[name] = tag
    return _line(name, "copied", **line | {"content": None if sent is None else size(sent)})


async def _posted(old: InferenceServer, new: InferenceServer, model: _Model, *, quiet: bool) -> int | None:
    """Post a model; returns the bytes of its content, None where it has none."""
    post = partial(
        new.post_model,
        model.container_tag,
        model.human_readable_id,
        description=model.description,
        use_gpu=True if model.use_gpu is None else model.use_gpu,
    )
    if not model.has_content:
        await post()
        return None
    async with temporary() as archive:
        async with old.model_zip(model.uid or "") as incoming:
            with bar(f"fetching {model.human_readable_id}", incoming.size or 0, hidden=quiet) as moved:
                count = await received(incoming, archive, moved)
        with bar(f"posting {model.human_readable_id}", count, hidden=quiet) as moved:
            await post(content=await outgoing([archive], moved))
    return count


def _name(told: Any) -> str:
    return str(told.get("human_readable_id")) if isinstance(told, dict) else "-"


def _line(name: str, outcome: str, note: str | None = None, **more: Any) -> Json:
    return {"human_readable_id": name, "container_tag": None, "content": None, **more, "outcome": outcome, "note": note}
