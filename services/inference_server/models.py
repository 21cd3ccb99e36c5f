"""Models: each is a MAP with a description of the façade's, and with static content where an archive was posted."""

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from gurney import clock, telemetry
from gurney.client import AsyncClient
from gurney.client.http import Json
from gurney.errors import Conflict, GurneyError, KeyTaken, MapNotReady, NameTaken, NotFound, RevisionConflict
from gurney.ids import digest_of, new_secret
from gurney.store import Store
from services.inference_server import repository
from services.inference_server.documents import Format, Model
from services.inference_server.patience import patiently
from services.inference_server.posting import Posting
from services.inference_server.repository import MODELS, Numbers
from services.inference_server.settings import InferenceServerSettings
from services.inference_server.stock import Stock, labels_of

INPUT, OUTPUT, CONTENT = "/input", "/output", "/model"
FOLDER_MAPS = "urn:gurney:dir:"
#: Models were run by plain Docker, which let them write where they liked.
HARDENING = {"mode": "compatible", "reason": "models of InferenceServer may write into their root file system"}
#: Seconds in which a MAP that proved unusable is not tried again.
ANEW_S = 10.0
#: Seconds between two looks at an image that is being pulled, which may take an hour.
POLL_S = 0.25

_log = telemetry.log("inference-server")


class Models:
    def __init__(
        self, store: Store, gurney: AsyncClient, stock: Stock, settings: InferenceServerSettings, *, posting: Posting
    ) -> None:
        self._store = store
        self._gurney = gurney
        self._stock = stock
        self._settings = settings
        self._posting = posting
        self._numbers = Numbers(store, "models")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def post(self, asked: Mapping[str, Any], format: Format, archive: Path | None) -> Model:  # noqa: A002
        """Store a model and register its MAP; raises `NameTaken` and `Invalid`, and nothing stays."""
        model = Model(
            id=digest_of(new_secret()),
            number=await self._numbers.next(),
            format=format,
            poster=self._posting.me,
            created_at=clock.now(),
            **asked,
        )
        with self._posting.of(model):
            try:
                await self._store.insert(MODELS, model)
            except KeyTaken as taken:
                raise NameTaken(f"there is a model {model.human_readable_id[:100]!r} already") from taken
            try:
                return await self._made(model, archive)
            except BaseException:
                await asyncio.shield(self._undo(model))
                raise

    async def _made(self, begun: Model, archive: Path | None) -> Model:
        """Make what a model needs that is being posted, and store it."""
        model = begun
        if archive is not None:
            content = await patiently(lambda: self._stock.unpack(begun, archive, "content"))
            model = model.but(content=content)
            model = model.but(upload=await self._stock.keep(model, archive, "archive"))
        found = await self._registered(model, f"{model.label}-map")
        return await self._store.replace(MODELS, model.next(map=found["id"]))

    async def usable(self, model: Model) -> str:
        """Return the MAP that a task of the model runs; raises `MapNotReady` where no image can be had.

        A MAP that proved unusable is registered anew: what was wrong with its image may be right by now.
        """
        async with self._locks.setdefault(model.id, asyncio.Lock()):
            model = await repository.model_of(self._store, model.id)
            with contextlib.suppress(NotFound):
                found = await patiently(lambda: self._gurney.maps.settled(model.map or "", poll_s=POLL_S))
                if found["state"] == "ready":
                    return str(found["id"])
                if found["state"] == "invalid" and _age_s(found) < ANEW_S:
                    raise _unusable(found)
            return await self._anew(model)

    async def pulled(self, model: Model) -> str:
        """Return the MAP of what the model's tag names now."""
        async with self._locks.setdefault(model.id, asyncio.Lock()):
            return await self._anew(await repository.model_of(self._store, model.id))

    async def _anew(self, model: Model) -> str:
        """Register the model's MAP once more; one whose image is the same goes again."""
        made = await self._registered(model, None)
        try:
            found = await patiently(lambda: self._gurney.maps.settled(made["id"], poll_s=POLL_S))
        except asyncio.CancelledError:
            await asyncio.shield(self._unregister(made["id"]))
            raise
        before = await self._known(model.map)
        is_ready, was_ready = found["state"] == "ready", before is not None and before["state"] == "ready"
        if before is not None and was_ready and (not is_ready or before["digest"] == found["digest"]):
            await self._unregister(found["id"])
        else:  # also one that is no better: its age tells when to try again
            await self._store.update(MODELS, model.id, lambda document: (document.next(map=found["id"]), ()))
            await self._unregister(model.map)
            before = found
        if not is_ready:
            raise _unusable(found)
        return str(before["id"])

    async def _known(self, ref: str | None) -> Json | None:
        with contextlib.suppress(NotFound):
            return await patiently(lambda: self._gurney.maps.get(ref)) if ref else None
        return None

    async def _registered(self, model: Model, key: str | None) -> Json:
        """Register; with a key once, however often it is asked."""
        register = self._gurney.maps.register
        described = self._described(model)

        async def registered() -> Json:
            return await register(
                model.container_tag,
                labels=labels_of(model),
                description=described,
                hardening=None if described is None else HARDENING,
                idempotency_key=key,
            )

        return await patiently(registered)

    def _described(self, model: Model) -> Json | None:
        """Return what is said of the image; a folder MAP speaks for itself."""
        if model.container_tag.startswith(FOLDER_MAPS) and model.content is None:
            return None
        content = {"content": {"payload": model.content, "path": CONTENT}} if model.content else {}
        return {"input_path": INPUT, "output_path": OUTPUT, "network": self._settings.network, **content}

    async def _unregister(self, ref: str | None) -> None:
        """Let a MAP go, unless jobs run it: then it stays, and what it holds."""
        if ref is not None:
            with contextlib.suppress(NotFound, Conflict):
                await patiently(lambda: self._gurney.maps.delete(ref))

    # --- what was begun and never finished ---

    async def sweep(self, living: Collection[str]) -> None:
        """Undo what nobody is posting any more; `living`: the processes that may be."""
        for model in await repository.half_posted(self._store):
            if self._posting.given_up(model, living):
                with contextlib.suppress(RevisionConflict):  # it was posted after all
                    await self._undo(await self._store.replace(MODELS, model.next(poster="")))

    async def _undo(self, model: Model) -> None:
        """Let go what was made of a model; where Gurney is away, the sweep does the same later."""
        try:
            async for found in self._gurney.maps.list(label=labels_of(model)):
                await self._gurney.maps.delete(found["id"])
            async for payload in self._gurney.payloads.list(label=labels_of(model)):
                await self._stock.drop(payload["id"])
            await self._store.remove(MODELS, model)
        except GurneyError as error:
            _log.warning("a model that was not posted goes later", model=model.number, error=error)


def _age_s(found: Json) -> float:
    return (clock.now() - datetime.fromisoformat(found["created_at"])).total_seconds()


def _unusable(found: Json) -> MapNotReady:
    reason = found["reason"] or {}
    return MapNotReady(f"{found['urn']} is {found['state']}: {reason.get('code')}: {reason.get('message')}")
