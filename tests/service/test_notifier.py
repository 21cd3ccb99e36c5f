"""The notifier over a real nats-server: signed deliveries, retries, lanes, and what a crash leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook

from gurney import clock, ids
from gurney.documents.port import Collection, D, Query, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import IdempotencyKeyReused, Invalid, NotFound, StoreUnavailable
from gurney.model.access import Caller, Role
from gurney.model.base import Idempotency
from gurney.model.common import Empty, Ref
from gurney.model.handler import (
    CreateHandler,
    Delivery,
    DeliveryList,
    Handler,
    HandlerCreate,
    HandlerPatch,
    PatchHandler,
)
from gurney.model.job import JobEvent, JobOwed, JobRefs, OwedJobs
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import (
    HANDLER_CREATE,
    HANDLER_DELETE,
    HANDLER_DELIVERIES,
    HANDLER_GET,
    HANDLER_PATCH,
    HANDLER_TEST,
    JOB_NOTIFIED,
    JOB_OWED,
)
from gurney.testing.nats import NatsServer
from gurney.testing.samples import sample
from services.notifier import lanes, policy
from services.notifier.__main__ import build
from services.notifier.known import KnownHandlers
from services.notifier.lanes import Lanes
from services.notifier.repository import BATCH, DELIVERIES
from services.notifier.sender import Sender

pytestmark = pytest.mark.timeout(60)

CALLER = Caller(token="tok_1", subject="ann", role=Role.DEVELOPER)


class Target:
    """A job handler: answers what it is told to, and keeps what it heard."""

    def __init__(self) -> None:
        self.reached: asyncio.Queue[str] = asyncio.Queue()
        self.heard: asyncio.Queue[tuple[bytes, Mapping[str, str]]] = asyncio.Queue()
        self.answers: list[int] = []
        self.hang = asyncio.Event()
        self.hang.set()
        self.url = ""

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.reached.put_nowait(request.headers["webhook-id"])
        await self.hang.wait()
        self.heard.put_nowait((body, dict(request.headers)))
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Target"]:
        app = web.Application()
        app.router.add_post("/", self.receive)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}/".format(*runner.addresses[0][:2])
        try:
            yield self
        finally:
            self.hang.set()
            await runner.cleanup()


class Jobs:
    """The job service, as far as the notifier asks it."""

    def __init__(self, settings: Settings) -> None:
        self.unnotified: dict[str, JobEvent] = {}
        self.notified: asyncio.Queue[str] = asyncio.Queue()
        self.service = Service("job", settings).does(Parts(answers={JOB_OWED: self.owed, JOB_NOTIFIED: self.mark}))

    async def owed(self, _: JobOwed) -> OwedJobs:
        return OwedJobs(ended=tuple(self.unnotified.values()))

    async def mark(self, question: JobRefs) -> Empty:
        for job in question.jobs:
            self.unnotified.pop(job, None)
            self.notified.put_nowait(job)
        return Empty()


def ended(event: str = "succeeded", **changes: Any) -> JobEvent:
    job = ids.new_id("job")
    made = sample(JobEvent).but(
        id=job, event=event, event_id=ids.job_event_id(job, 1, event), at=clock.now(), project="default"
    )
    return made.but(handlers=None, labels={}, placement=None, **changes)


class World:
    """Notifier, job service and a client of both."""

    def __init__(self, settings: Settings, documents: SqliteDocuments, *, alone: bool = False) -> None:
        self.jobs = Jobs(settings)
        self.notifier = build(settings, documents=documents, alone=alone)
        self.client = Service("edge", settings)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        async with self.jobs.service, self.notifier, self.client:
            yield self

    async def register(self, url: str, events: tuple[str, ...] | None = None, **options: Any) -> Handler:
        body = CreateHandler(url=url) if events is None else CreateHandler(url=url, events=events)
        question = HandlerCreate(caller=CALLER, body=body, **options)
        return await self.client.bus.request(HANDLER_CREATE, question)

    async def publish(self, event: JobEvent) -> None:
        await self.client.bus.js.publish(f"job.{event.event}.{event.id}", event.encode())

    async def deliveries(self, handler: Handler) -> tuple[Delivery, ...]:
        page = await self.client.bus.request(HANDLER_DELIVERIES, DeliveryList(caller=CALLER, handler=handler.id))
        return page.items

    async def until_disabled(self, handler: Handler) -> None:
        while (await self.client.bus.request(HANDLER_GET, Ref(caller=CALLER, ref=handler.id))).state == "active":
            await asyncio.sleep(0.02)

    async def settled(self, handler: Handler, count: int = 1) -> tuple[Delivery, ...]:
        async with asyncio.timeout(20):
            while True:
                found = await self.deliveries(handler)
                if len(found) == count and all(each.state != "pending" for each in found):
                    return found
                await asyncio.sleep(0.02)


@pytest.fixture
async def world(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[World]:
    """A notifier over an empty database."""
    settings = Settings(nats_url=nats_server.url, data=tmp_path, webhook_private="loopback", webhook_timeout=2)
    documents = SqliteDocuments(tmp_path / "documents.sqlite")
    async with World(settings, documents).running() as running:
        yield running
    await documents.close()


async def test_an_end_is_told_once_and_signed(world: World) -> None:
    """The handler gets one signed request for an event, also when the event comes twice; the job is marked told."""
    async with Target().serving() as target:
        handler = await world.register(target.url)
        event = ended()
        await world.publish(event)
        await world.publish(event)
        body, headers = await asyncio.wait_for(target.heard.get(), 20)
        assert handler.secret is not None
        told = Webhook(handler.secret).verify(body, dict(headers))
        assert told["type"] == "job.succeeded"
        assert told["data"]["id"] == event.id
        assert headers["webhook-id"] == event.event_id
        (delivery,) = await world.settled(handler)
        assert [each.status for each in delivery.attempts] == [204]
        assert await asyncio.wait_for(world.jobs.notified.get(), 20) == event.id
        assert target.heard.empty()


async def test_a_refusal_is_tried_again_until_it_is_taken(world: World) -> None:
    """After an error the same delivery comes again under the same id; every attempt is recorded."""
    async with Target().serving() as target:
        target.answers = [500]
        handler = await world.register(target.url)
        await world.publish(ended())
        first = await asyncio.wait_for(target.heard.get(), 20)
        second = await asyncio.wait_for(target.heard.get(), 20)
        assert first[1]["webhook-id"] == second[1]["webhook-id"]
        assert first[0] == second[0]
        (delivery,) = await world.settled(handler)
        assert [each.status for each in delivery.attempts] == [500, 204]


async def test_a_target_that_is_gone_is_disabled(world: World) -> None:
    """410 ends the delivery and disables the handler."""
    async with Target().serving() as target:
        target.answers = [410]
        handler = await world.register(target.url)
        await world.publish(ended())
        (delivery,) = await world.settled(handler)
        assert delivery.state == "failed"
        async with asyncio.timeout(20):
            await world.until_disabled(handler)


async def test_what_is_under_way_to_a_handler_ends_when_it_is_disabled(world: World) -> None:
    """It is not sent once more, for a day; but who is disabled can be tried."""
    async with Target().serving() as target:
        target.answers = [500] * 9
        handler = await world.register(target.url)
        await world.publish(ended())
        await asyncio.wait_for(target.heard.get(), 20)
        body = PatchHandler(state="disabled")
        await world.client.bus.request(HANDLER_PATCH, HandlerPatch(caller=CALLER, handler=handler.id, body=body))
        (delivery,) = await world.settled(handler)
        assert (delivery.state, {each.status for each in delivery.attempts}) == ("failed", {500})
        while not target.heard.empty():
            target.heard.get_nowait()
        await world.client.bus.request(HANDLER_TEST, Ref(caller=CALLER, ref=handler.id))
        sent, _ = await asyncio.wait_for(target.heard.get(), 20)
        assert json.loads(sent)["type"] == "handler.test"


async def test_a_target_that_is_gone_is_told_no_more(nats_server: NatsServer, tmp_path: Path) -> None:
    """What ends after a 410 makes no delivery, although a notifier that is alone seldom looks who is there."""
    documents = SqliteDocuments(tmp_path / "documents.sqlite")
    settings = Settings(nats_url=nats_server.url, data=tmp_path, webhook_private="loopback")
    async with World(settings, documents, alone=True).running() as world, Target().serving() as target:
        target.answers = [410]
        handler = await world.register(target.url)
        await world.publish(ended())
        async with asyncio.timeout(20):
            await world.until_disabled(handler)
        later = ended()
        await world.publish(later)
        while await asyncio.wait_for(world.jobs.notified.get(), 20) != later.id:
            pass
        assert [each.state for each in await world.deliveries(handler)] == ["failed"]
    await documents.close()


async def test_a_hanging_target_delays_no_other(world: World) -> None:
    """While one handler does not answer, another is told at once."""
    async with Target().serving() as slow, Target().serving() as quick:
        slow.hang.clear()
        await world.register(slow.url)
        await world.register(quick.url)
        events = [ended() for _ in range(20)]
        for event in events:
            await world.publish(event)
        told = {(await asyncio.wait_for(quick.heard.get(), 20))[1]["webhook-id"] for _ in events}
        assert told == {event.event_id for event in events}
        assert slow.heard.empty()


async def test_what_was_never_heard_is_made_up_from_the_jobs(world: World) -> None:
    """An ended job that is not marked told is told by the reconciler."""
    async with Target().serving() as target:
        await world.register(target.url)
        event = ended()
        world.jobs.unnotified[event.id] = event
        world.notifier.reconcile_soon()
        assert (await asyncio.wait_for(target.heard.get(), 20))[1]["webhook-id"] == event.event_id
        assert await asyncio.wait_for(world.jobs.notified.get(), 20) == event.id


async def test_a_delivery_that_a_crash_left_is_sent_by_the_next_start(nats_server: NatsServer, tmp_path: Path) -> None:
    """A pending delivery whose taker is gone comes out again, under its id."""
    settings = Settings(nats_url=nats_server.url, data=tmp_path, webhook_private="loopback", webhook_timeout=1)
    documents = SqliteDocuments(tmp_path / "documents.sqlite")
    async with Target().serving() as target:
        target.answers = [503]
        async with World(settings, documents).running() as world:
            handler = await world.register(target.url)
            await world.publish(ended())
            first = await asyncio.wait_for(target.heard.get(), 20)
        async with World(settings, documents).running() as world:
            second = await asyncio.wait_for(target.heard.get(), 40)
            assert first[1]["webhook-id"] == second[1]["webhook-id"]
            await world.settled(handler)
    await documents.close()


def due(handler: Handler) -> Delivery:
    """A delivery that nobody has taken."""
    now = clock.now()
    first = policy.first_delivery(ids.new_id("dlv"), handler, ended(), now)
    return first.but(taken_until=None)


@pytest.mark.parametrize("alone", [True, False])
async def test_what_a_killed_notifier_was_sending(nats_server: NatsServer, tmp_path: Path, *, alone: bool) -> None:
    """Its next life sends it at once where no other replica is there; else it is left to whoever has taken it."""
    settings = Settings(nats_url=nats_server.url, data=tmp_path, webhook_private="loopback")
    documents = SqliteDocuments(tmp_path / "documents.sqlite")
    async with Target().serving() as slow, Target().serving() as quick:
        slow.hang.clear()
        async with World(settings, documents, alone=alone).running() as world:
            handler, other = await world.register(slow.url), await world.register(quick.url)
            event = ended().but(handlers=(handler.id,))
            await world.publish(event)
            assert await asyncio.wait_for(slow.reached.get(), 20) == event.event_id
        free = due(other)  # its turn comes after the one that is taken
        assert await documents.cas([Write(DELIVERIES, free.id, 0, free)]) == [None]
        async with World(settings, documents, alone=alone).running():
            await asyncio.wait_for(quick.heard.get(), 20)
            if alone:
                assert await asyncio.wait_for(slow.reached.get(), policy.TAKEN_S / 2) == event.event_id
            assert slow.reached.empty()
    await documents.close()


async def test_one_handlers_backlog_delays_no_others_retry(nats_server: NatsServer, tmp_path: Path) -> None:
    """What is due for one handler is sent while more than is read at once has long been due for a hanging one."""
    settings = Settings(nats_url=nats_server.url, data=tmp_path, webhook_private="loopback")
    documents = SqliteDocuments(tmp_path / "documents.sqlite")
    async with Target().serving() as slow, Target().serving() as quick:
        slow.hang.clear()
        async with World(settings, documents, alone=True).running() as world:
            handler, other = await world.register(slow.url), await world.register(quick.url)
        backlog = [due(handler) for _ in range(BATCH + 50)]
        late = due(other)
        writes = [Write(DELIVERIES, each.id, 0, each) for each in (*backlog, late)]
        assert not any(await documents.cas(writes))
        async with World(settings, documents, alone=True).running():
            assert (await asyncio.wait_for(quick.heard.get(), 20))[1]["webhook-id"] == late.event
    await documents.close()


class Flaky(SqliteDocuments):
    """Documents whose deliveries cannot be read until `away` is over."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.away = 1

    async def find(self, collection: Collection[D], query: Query) -> list[D]:
        if collection.name == DELIVERIES.name and self.away:
            self.away -= 1
            raise StoreUnavailable
        return await super().find(collection, query)


async def test_retries_go_on_when_the_documents_were_away(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look for what is due that fails is made again."""
    monkeypatch.setattr(lanes, "RETRY_S", 0.1)
    settings = Settings(nats_url=nats_server.url, data=tmp_path, webhook_private="loopback")
    documents = Flaky(tmp_path / "documents.sqlite")
    async with World(settings, documents).running() as world, Target().serving() as target:
        while documents.away:
            await asyncio.sleep(0.01)
        handler = await world.register(target.url)
        left = due(handler)
        assert await documents.cas([Write(DELIVERIES, left.id, 0, left)]) == [None]
        assert (await asyncio.wait_for(target.heard.get(), 20))[1]["webhook-id"] == left.event
    await documents.close()


async def test_a_repeated_registration_gets_the_first_result_without_the_secret(world: World) -> None:
    """The same key and body give the same handler, its secret hidden; another body is refused."""
    key = Idempotency(key="tok:route:1", digest="a")
    first = await world.register("http://127.0.0.1:9/", idempotency=key)
    again = await world.register("http://127.0.0.1:9/", idempotency=key)
    assert again == first.but(secret=None)
    with pytest.raises(IdempotencyKeyReused):
        await world.register("http://127.0.0.1:9/", idempotency=key.but(digest="b"))


async def test_a_removed_handler_and_its_deliveries_are_gone(world: World) -> None:
    """After a delete nothing is found and nothing is sent."""
    async with Target().serving() as target:
        handler = await world.register(target.url)
        delivery = await world.client.bus.request(HANDLER_TEST, Ref(caller=CALLER, ref=handler.id))
        assert (await asyncio.wait_for(target.heard.get(), 20))[1]["webhook-id"] == delivery.event
        await world.settled(handler)
        await world.client.bus.request(HANDLER_DELETE, Ref(caller=CALLER, ref=handler.id))
        with pytest.raises(NotFound):
            await world.deliveries(handler)
        await world.publish(ended())
        assert await asyncio.wait_for(world.jobs.notified.get(), 20)
        assert target.heard.empty()


async def test_a_handler_that_cannot_be_is_refused(world: World) -> None:
    """Private addresses and unknown events are errors of their fields."""
    with pytest.raises(Invalid, match=r"10\.0\.0\.1"):
        await world.register("http://10.0.0.1/")
    question = HandlerCreate(caller=CALLER, body=CreateHandler(url="http://127.0.0.1/", events=("job.nonsense",)))
    with pytest.raises(Invalid, match=r"job\.nonsense"):
        await world.client.bus.request(HANDLER_CREATE, question)


async def test_every_replica_knows_a_handler_once_it_is_registered(nats_server: NatsServer, tmp_path: Path) -> None:
    """Events that come right after the registration are told, whichever of two notifiers hears them."""
    documents = SqliteDocuments(tmp_path / "documents.sqlite")
    settings = Settings(nats_url=nats_server.url, data=tmp_path, webhook_private="loopback")
    second = build(settings, documents=documents)
    async with World(settings, documents).running() as world, second, Target().serving() as target:
        other = await world.register(target.url, events=("job.scheduled",))
        for _ in range(20):  # both have a list now
            await world.publish(ended(event="scheduled"))
        handler = await world.register(target.url, events=("job.started",))
        for _ in range(20):
            await world.publish(ended(event="started"))
        assert len(await world.settled(handler, 20)) == 20
        assert len(await world.settled(other, 20)) == 20
    await documents.close()


async def test_a_delivery_that_waited_too_long_here_is_left_to_whoever_took_it(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """A lane takes a delivery anew before it sends, where its time is nearly over, and only if it can."""
    documents = SqliteDocuments(tmp_path / "documents.sqlite")
    settings = Settings(nats_url=nats_server.url, data=tmp_path, webhook_private="loopback")
    async with World(settings, documents).running() as world, Target().serving() as target:
        handler = await world.register(target.url)
        store, late = world.notifier.store, clock.now() - timedelta(seconds=policy.TAKEN_S)
        first, second = [policy.first_delivery(ids.new_id("dlv"), handler, ended(), late) for _ in range(2)]
        due = clock.now() + timedelta(hours=1)  # the notifier's own lanes leave it alone
        for delivery in (first, second):
            await store.insert(DELIVERIES, delivery.but(next_attempt_at=due))
        await store.replace(DELIVERIES, first.next(next_attempt_at=due, taken_until=due))
        async with Sender(settings) as sender:
            own = Lanes(store, sender, KnownHandlers(store, alone=False), settings, alone=False)
            own.hand([first, second])
            assert await asyncio.wait_for(target.reached.get(), 20) == second.event
            async with asyncio.timeout(20):
                while all(each.state != "delivered" for each in await world.deliveries(handler)):
                    await asyncio.sleep(0.01)
        assert target.reached.empty()
    await documents.close()
