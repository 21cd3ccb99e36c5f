"""The service runner over a real nats-server: questions, consumers, dead letters, outbox, lost streams, drain."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import nats
import pytest
from structlog.testing import CapturingLogger

from gurney import clock, ids, outbox
from gurney.bus import Bus
from gurney.consume import Reject
from gurney.documents.port import Collection, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import Forbidden, Internal, Invalid, NameTaken, NatsUnavailable, NoRoom
from gurney.lateness import Asker
from gurney.model.access import Caller, Role
from gurney.model.base import Message
from gurney.model.common import Ref
from gurney.model.event import Event
from gurney.model.payload import Payload, PayloadState, SignedFiles, SignFiles
from gurney.model.run import Confirm, Confirmed
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.streams import Consumer
from gurney.subjects import EDGE_TOKENS, PAYLOAD_DELETE, PAYLOAD_GET, PAYLOAD_SIGN, SCHEDULER_CONFIRM
from gurney.testing.nats import NatsServer

PAYLOADS = Collection("payloads", Payload)
WORK = Consumer("LIFECYCLE", "job", "lifecycle.*.*", "job")
HEARD = Consumer("EVENTS", "test", "payload.*.*", "job")

pytestmark = pytest.mark.timeout(60)


def settings_of(server: NatsServer, folder: Path) -> Settings:
    return Settings(nats_url=server.url, data=folder, request_timeout=2, reconcile_interval=5)


def payload() -> Payload:
    now = clock.now()
    return Payload(id=ids.new_id("pay"), created_at=now, updated_at=now, state=PayloadState.OPEN)


def told(document: Payload) -> Event:
    subject = f"payload.created.{document.id}"
    return Event(id=f"evt_{document.id}", subject=subject, source="test", at=clock.now(), body='{"a": 1}')


@pytest.fixture
def starting(nats_server: NatsServer, tmp_path: Path) -> Service:
    """A service that is not entered yet."""
    return Service("job", settings_of(nats_server, tmp_path))


class Heard:
    """A handler of messages that remembers, and does what it is told first."""

    def __init__(self, act: Callable[[str], Awaitable[None]] | None = None) -> None:
        self.subjects: list[str] = []
        self._act = act
        self._changed = asyncio.Condition()

    async def __call__(self, subject: str, data: bytes) -> None:
        json.loads(data)
        if self._act:
            await self._act(subject)
        async with self._changed:
            self.subjects.append(subject)
            self._changed.notify_all()

    async def count(self, number: int) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: len(self.subjects) >= number)


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[SqliteDocuments]:
    """A database; services open their collections in it."""
    database = SqliteDocuments(tmp_path / "documents.sqlite")
    await database.open([PAYLOADS])
    yield database
    await database.close()


async def test_a_question_gets_its_answer_or_the_owners_error(nats_server: NatsServer, tmp_path: Path) -> None:
    """Answers come back as models; errors come back as the same class, message, fields and retry time."""
    document = payload()
    faults: dict[str, Exception] = {
        "taken": NameTaken("the name x is taken"),
        "field": Invalid.field("path", "is bad"),
        "room": NoRoom("no cpu", retry_after_s=3),
        "bug": ZeroDivisionError(),
    }

    async def get(question: Ref) -> Payload:
        if question.ref in faults:
            raise faults[question.ref]
        return document

    settings = settings_of(nats_server, tmp_path)
    owner = Service("payload", settings).does(Parts(answers={PAYLOAD_GET: get}))
    asker = Service("edge", settings)
    async with owner, asker:
        assert await asker.bus.request(PAYLOAD_GET, Ref(ref="x")) == document
        with pytest.raises(NameTaken, match="the name x is taken"):
            await asker.bus.request(PAYLOAD_GET, Ref(ref="taken"))
        with pytest.raises(Invalid) as invalid:
            await asker.bus.request(PAYLOAD_GET, Ref(ref="field"))
        assert [each.field for each in invalid.value.errors] == ["path"]
        with pytest.raises(NoRoom) as room:
            await asker.bus.request(PAYLOAD_GET, Ref(ref="room"))
        assert room.value.retry_after_s == 3
        with pytest.raises(Internal):
            await asker.bus.request(PAYLOAD_GET, Ref(ref="bug"))
        with pytest.raises(NatsUnavailable):
            await asker.bus.request(PAYLOAD_DELETE, Ref(ref="nobody answers this"))


async def test_a_question_that_its_asker_gave_up_is_not_carried_out(
    own_nats_server: NatsServer, tmp_path: Path
) -> None:
    """What waited in a message server that rested is dropped when it goes on; who asks again is heard."""
    heard: list[str] = []

    async def get(question: Ref) -> Payload:
        heard.append(question.ref)
        return payload()

    settings = settings_of(own_nats_server, tmp_path).model_copy(update={"request_timeout": 0.5})
    owner = Service("payload", settings).does(Parts(answers={PAYLOAD_GET: get}))
    asker = Service("edge", settings)
    async with owner, asker:
        await asker.bus.request(PAYLOAD_GET, Ref(ref="before"))
        await asyncio.to_thread(own_nats_server.pause)
        with pytest.raises(NatsUnavailable):
            await asker.bus.request(PAYLOAD_GET, Ref(ref="given up"))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own_nats_server.resume)
        await asker.bus.request(PAYLOAD_GET, Ref(ref="after"), within=5)
        assert heard == ["before", "after"]


async def test_an_asker_whose_clock_jumped_is_heard(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that was suspended asks as before, though its questions look old."""

    async def get(_: Ref) -> Payload:
        return payload()

    settings = settings_of(nats_server, tmp_path)
    owner = Service("payload", settings).does(Parts(answers={PAYLOAD_GET: get}))
    asker = Service("edge", settings)
    async with owner, asker:
        await asker.bus.request(PAYLOAD_GET, Ref(ref="x"))
        header = Asker.header

        def behind(asker: Asker, patience_s: float) -> str:
            name, sent, patience = header(asker, patience_s).split()
            return f"{name} {float(sent) - 3600} {patience}"

        monkeypatch.setattr(Asker, "header", behind)
        assert await asker.bus.request(PAYLOAD_GET, Ref(ref="x"))


async def test_a_question_that_cannot_be_decoded_is_refused(nats_server: NatsServer, tmp_path: Path) -> None:
    """Bytes that are no question get the error `invalid`, and the service goes on."""

    async def get(question: Ref) -> Message:
        return payload().but(name=question.ref)

    async with Service("payload", settings_of(nats_server, tmp_path)).does(Parts(answers={PAYLOAD_GET: get})):
        client = await nats.connect(nats_server.url)
        reply = await client.request(PAYLOAD_GET.subject, b"{", timeout=2)
        assert json.loads(reply.data)["code"] == "invalid"
        reply = await client.request(PAYLOAD_GET.subject, b'{"ref": "x", "from_the_future": 1}', timeout=2)
        assert json.loads(reply.data)["name"] == "x"
        await client.close()


async def test_services_are_discovered_by_the_services_protocol(nats_server: NatsServer, tmp_path: Path) -> None:
    """`$SRV.INFO` tells each service and its endpoints (ADR-32 of NATS)."""

    async def get(_: Ref) -> Message:
        return payload()

    async with Service("payload", settings_of(nats_server, tmp_path)).does(Parts(answers={PAYLOAD_GET: get})):
        client = await nats.connect(nats_server.url)
        info = json.loads((await client.request("$SRV.INFO.gurney-payload", timeout=2)).data)
        assert [each["subject"] for each in info["endpoints"]] == ["svc.payload.get"]
        await client.close()


async def test_an_old_server_is_refused_in_one_line(tmp_path: Path) -> None:
    """Where nobody listens the error names the address."""
    bus = Bus(Settings(nats_url="nats://127.0.0.1:9", data=tmp_path), "edge")
    with pytest.raises(NatsUnavailable, match=r"cannot reach NATS at nats://127\.0\.0\.1:9"):
        await bus.connect()


async def test_a_failed_message_comes_again_and_a_done_one_does_not(nats_server: NatsServer, tmp_path: Path) -> None:
    """What a handler raises on is delivered again until it succeeds; the work queue is empty then."""
    failures = iter([OSError("first"), NatsUnavailable("second")])

    async def act(_: str) -> None:
        if fault := next(failures, None):
            raise fault

    heard = Heard(act)
    service = Service("job", settings_of(nats_server, tmp_path)).does(Parts(consumers={WORK: heard}))
    async with service:
        await service.bus.js.publish("lifecycle.started.job_1", b"{}")
        await heard.count(1)
        await _until_empty(service.bus, "LIFECYCLE")
    assert heard.subjects == ["lifecycle.started.job_1"]


@pytest.mark.parametrize("kind", ["undecodable", "rejected"])
async def test_what_can_never_succeed_becomes_a_dead_letter(nats_server: NatsServer, tmp_path: Path, kind: str) -> None:
    """A poison message is kept in DEAD with its subject and reason, leaves the queue, and the server tells of it."""

    async def act(_: str) -> None:
        raise Reject("no such thing")

    async def decode(_: str, data: bytes) -> None:
        Ref.decode(data)

    handler = decode if kind == "undecodable" else Heard(act)
    service = Service("job", settings_of(nats_server, tmp_path)).does(Parts(consumers={WORK: handler}))
    async with service:
        advisories = await service.bus.raw.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.LIFECYCLE.job")
        await service.bus.js.publish("lifecycle.started.job_1", b"{}")
        advisory = json.loads((await advisories.next_msg(10)).data)
        assert advisory["stream"] == "LIFECYCLE"
        await _until_empty(service.bus, "LIFECYCLE")
        dead = await service.bus.js.get_last_msg("DEAD", "dead.LIFECYCLE.job")
    assert dead.data == b"{}"
    assert dead.headers is not None
    assert dead.headers["gurney-subject"] == "lifecycle.started.job_1"
    assert dead.headers["gurney-reason"]


async def test_messages_of_one_id_keep_their_order(nats_server: NatsServer, tmp_path: Path) -> None:
    """Messages of one job are handled one after the other, in order; those of others do not wait for them."""
    release = asyncio.Event()

    async def act(subject: str) -> None:
        if subject == "lifecycle.a.job_1":
            await release.wait()

    heard = Heard(act)
    service = Service("job", settings_of(nats_server, tmp_path)).does(Parts(consumers={WORK: heard}))
    async with service:
        for subject in ("lifecycle.a.job_1", "lifecycle.b.job_1", "lifecycle.c.job_1", "lifecycle.a.job_2"):
            await service.bus.js.publish(subject, b"{}")
        await heard.count(1)
        assert heard.subjects == ["lifecycle.a.job_2"]
        release.set()
        await heard.count(4)
    assert heard.subjects[1:] == ["lifecycle.a.job_1", "lifecycle.b.job_1", "lifecycle.c.job_1"]


async def test_events_that_a_crash_left_are_published_at_the_next_start(
    nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments
) -> None:
    """An event that was written but never sent goes out at start, under the same id, and is settled."""
    left = payload()
    await documents.cas([Write(PAYLOADS, left.id, 0, left, (told(left),))])
    heard = Heard()
    service = Service("job", settings_of(nats_server, tmp_path), documents, [PAYLOADS])
    async with service.does(Parts(consumers={HEARD: heard})):
        await heard.count(1)
        message = await service.bus.js.get_last_msg("EVENTS", f"payload.created.{left.id}")
        assert message.headers is not None
        assert message.headers["ce-id"] == message.headers["Nats-Msg-Id"] == f"evt_{left.id}"
        assert message.headers["ce-type"] == "payload.created"
        async with asyncio.timeout(10):
            while await documents.unpublished(PAYLOADS, 0):
                await asyncio.sleep(0.01)


async def test_events_are_sent_in_one_turn_of_the_loop(starting: Service) -> None:
    """However busy the loop is, events that are published together do not wait for a turn of it each."""
    async with starting:
        await starting.bus.publish_events([told(payload())])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(starting.bus.publish_events([told(payload()) for _ in range(100)]))
            await asyncio.sleep(0)
            assert starting.bus.js.publish_async_pending() == 100
        assert (await starting.bus.js.stream_info("EVENTS")).state.messages == 101


async def test_events_written_while_nats_is_away_are_published_later_in_order(
    own_nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write succeeds while nats-server is down, which is told once; its events follow when it is back, in order."""
    log, errors = CapturingLogger(), CapturingLogger()
    monkeypatch.setattr(outbox, "_log", log)
    monkeypatch.setattr("gurney.connection._log", errors)
    monkeypatch.setattr(outbox, "RETRY_S", 0.01)
    heard = Heard()
    service = Service("job", settings_of(own_nats_server, tmp_path), documents, [PAYLOADS])
    async with service.does(Parts(consumers={HEARD: heard})):
        first = payload()
        await service.store.insert(PAYLOADS, first, told(first))
        await heard.count(1)
        await asyncio.to_thread(own_nats_server.kill)
        written = [payload() for _ in range(5)]
        for document in written:
            await service.store.insert(PAYLOADS, document, told(document))
        async with asyncio.timeout(40):
            while len([call for call in log.calls if call.args == ("events wait",)]) < 2 or len(errors.calls) < 4:
                await asyncio.sleep(0.05)
        await asyncio.to_thread(own_nats_server.start)
        await heard.count(6)
        stream = await service.bus.js.stream_info("EVENTS")
        stored = [(await service.bus.js.get_msg("EVENTS", seq)).subject for seq in range(1, stream.state.messages + 1)]
    assert [str(subject).rpartition(".")[2] for subject in stored] == [each.id for each in (first, *written)]
    assert len([call for call in log.calls if call.method_name == "warning"]) == 1
    reasons = [call.kwargs["reason"] for call in errors.calls if call.method_name == "warning"]
    assert len(reasons) == len(set(reasons))


async def test_a_wiped_jetstream_is_declared_again_and_reconciled(
    own_nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments
) -> None:
    """After all streams are gone, streams and consumers come back by themselves and the reconciler runs."""
    heard = Heard()
    rounds: asyncio.Queue[int] = asyncio.Queue()

    async def reconcile() -> None:
        rounds.put_nowait(1)

    service = Service("job", settings_of(own_nats_server, tmp_path), documents, [PAYLOADS])
    async with service.does(Parts(consumers={HEARD: heard}, reconcile=reconcile)):
        await asyncio.to_thread(own_nats_server.stop)
        own_nats_server.wipe()
        while not rounds.empty():
            rounds.get_nowait()
        await asyncio.to_thread(own_nats_server.start)
        async with asyncio.timeout(20):
            await rounds.get()
        document = payload()
        await service.store.insert(PAYLOADS, document, told(document))
        await heard.count(1)


async def test_leaving_a_service_lets_its_work_end(nats_server: NatsServer, tmp_path: Path) -> None:
    """A message that is in work when the service stops is finished and acknowledged."""
    begun, finish = asyncio.Event(), asyncio.Event()

    async def act(_: str) -> None:
        begun.set()
        await finish.wait()

    heard = Heard(act)
    settings = settings_of(nats_server, tmp_path)
    service = Service("job", settings).does(Parts(consumers={WORK: heard}))
    async with service:
        await service.bus.js.publish("lifecycle.started.job_1", b"{}")
        await begun.wait()
        asyncio.get_running_loop().call_later(0.2, finish.set)
    assert heard.subjects == ["lifecycle.started.job_1"]
    bus = Bus(settings, "look")
    await bus.connect()
    await _until_empty(bus, "LIFECYCLE")
    await bus.close()


async def _until_empty(bus: Bus, stream: str) -> None:
    async with asyncio.timeout(20):
        while (await bus.js.stream_info(stream)).state.messages:
            await asyncio.sleep(0.01)


async def test_a_service_that_stops_finishes_what_it_was_asked_and_takes_no_more(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """An open question gets its answer; one that comes meanwhile finds nobody; what is written goes out."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def get(_: Ref) -> Payload:
        asked.set()
        await answer.wait()
        return payload()

    settings = settings_of(nats_server, tmp_path)
    stopping = Service("payload", settings).does(Parts(answers={PAYLOAD_GET: get}))
    async with Service("edge", settings) as asker:
        await stopping.__aenter__()
        open_one = asyncio.create_task(asker.bus.request(PAYLOAD_GET, Ref(ref="x")))
        await asked.wait()
        stop = asyncio.create_task(stopping.__aexit__(None, None, None))
        async with asyncio.timeout(20):
            while await _is_answered(asker.bus):
                pass
        assert not stop.done()
        answer.set()
        assert (await open_one).state is PayloadState.OPEN
        await stop


async def _is_answered(bus: Bus) -> bool:
    """Tell whether anybody takes this question; who does not answer in time still took it."""
    try:
        await bus.request(PAYLOAD_GET, Ref(ref="y"), within=0.05)
    except NatsUnavailable as error:
        return "NoResponders" not in str(error)
    return True


async def test_what_a_service_leaves_unpublished_goes_out_when_it_stops(
    nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments
) -> None:
    """Events that lie in the documents are published before the service ends: no other replica must look for them."""
    settings = settings_of(nats_server, tmp_path)
    async with Service("job", settings) as reader:
        document = payload()
        async with Service("payload", settings, documents, [PAYLOADS]):
            await documents.unpublished(PAYLOADS, 0)  # what was left at the start is out
            await documents.cas([Write(PAYLOADS, document.id, 0, document, (told(document),))])
        assert (await reader.bus.js.get_last_msg("EVENTS", told(document).subject)).data


async def test_replicas_hear_what_has_changed(nats_server: NatsServer, tmp_path: Path) -> None:
    """A notice reaches the other replicas of a service, and nothing is lost to whoever has none."""
    settings, heard = settings_of(nats_server, tmp_path), asyncio.Event()
    one, other = Service("edge", settings), Service("edge", settings)

    async def changed(subject: str, _: bytes) -> None:
        assert subject == "peer.edge.tokens"
        heard.set()

    other.does(Parts(resources=[other.bus.hearing(EDGE_TOKENS.subject, changed)]))
    async with one:
        await one.bus.tell_peers(EDGE_TOKENS)
        async with other:
            await one.bus.tell_peers(EDGE_TOKENS)
            await asyncio.wait_for(heard.wait(), 20)


async def test_an_agent_asks_for_its_own_node_and_by_the_token_of_a_run(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """What an agent asks in another node's name, or for a client, is forbidden whoever it says that it is."""

    async def confirm(_: Confirm) -> Confirmed:
        return Confirmed(start=True)

    async def sign(_: SignFiles) -> SignedFiles:
        return SignedFiles(items=())

    settings = settings_of(nats_server, tmp_path).model_copy(update={"node": "n1"})
    owner = Service("owner", settings).does(Parts(answers={SCHEDULER_CONFIRM: confirm, PAYLOAD_SIGN: sign}))
    async with owner, Service("agent", settings) as agent:
        ask = agent.bus.request
        assert (await ask(SCHEDULER_CONFIRM, Confirm(run_id="r", node="n1", epoch=1))).start
        with pytest.raises(Forbidden, match="in the name of another"):
            await ask(SCHEDULER_CONFIRM, Confirm(run_id="r", node="n2", epoch=1))
        await ask(PAYLOAD_SIGN, SignFiles(token="t", payload="p", paths=("a",)))
        admin = Caller(token="tok", subject="me", role=Role.ADMINISTRATOR)
        for forged in (SignFiles(caller=admin, payload="p", paths=("a",)), SignFiles(payload="p", paths=("a",))):
            with pytest.raises(Forbidden, match="without the token of a run"):
                await ask(PAYLOAD_SIGN, forged)


async def test_events_of_another_replica_are_published_and_so_is_what_comes_after(
    nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments
) -> None:
    """What lies unpublished is found when somebody asks for it, and the outbox goes on with what it is given then."""
    heard = Heard()
    service = Service("job", settings_of(nats_server, tmp_path), documents, [PAYLOADS])
    async with service.does(Parts(consumers={HEARD: heard})):
        for number in range(3):
            left, new = payload(), payload()
            await documents.cas([Write(PAYLOADS, left.id, 0, left, (told(left),))])
            service.publish_left()
            await heard.count(2 * number + 1)
            await service.store.insert(PAYLOADS, new, told(new))
            await heard.count(2 * number + 2)


@pytest.mark.parametrize(
    ("fault", "seconds", "told"), [(NoRoom("x"), 60.0, 0), (NoRoom("x"), 0.0, 1), (Internal("x"), 60.0, 1)]
)
async def test_a_reconciler_whom_nobody_answers_yet_says_nothing(
    starting: Service, monkeypatch: pytest.MonkeyPatch, fault: Exception, seconds: float, told: int
) -> None:
    """While all start, that another is away is no warning; later, or another fault, is one, however long it lasts."""
    log, rounds = CapturingLogger(), asyncio.Queue[None]()
    monkeypatch.setattr("gurney.service._log", log)
    monkeypatch.setattr("gurney.service.OTHERS_START_S", seconds)

    async def reconcile() -> None:
        rounds.put_nowait(None)
        if rounds.qsize() <= 2:
            raise fault

    async with starting.does(Parts(reconcile=reconcile)), asyncio.timeout(20):
        while rounds.qsize() <= 2:
            starting.reconcile_soon()
            await asyncio.sleep(0.01)
    assert len([call for call in log.calls if call.method_name == "warning"]) == told


async def test_a_task_that_fails_begins_again(starting: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in one of a service's tasks is told, and does not leave the service without the task."""
    log, begun = CapturingLogger(), asyncio.Queue[None]()
    monkeypatch.setattr("gurney.service._log", log)
    monkeypatch.setattr("gurney.service.FIRST_PAUSE_S", 0.01)

    async def task() -> None:
        begun.put_nowait(None)
        if begun.qsize() <= 2:
            raise RuntimeError("a defect")
        await asyncio.Event().wait()

    async with starting.does(Parts(tasks=[task])), asyncio.timeout(20):
        while begun.qsize() <= 2:
            await asyncio.sleep(0.01)
    assert len([call for call in log.calls if call.method_name == "exception"]) == 2


async def test_events_that_a_killed_replica_left_are_soon_published(
    nats_server: NatsServer, tmp_path: Path, documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lives publishes what has lain for seconds, however seldom it reconciles; its own it publishes once."""
    monkeypatch.setattr(outbox, "SWEEP_AGE_S", 0.1)
    monkeypatch.setattr(outbox, "SWEEP_EVERY_S", 0.05)
    heard = Heard()
    settings = settings_of(nats_server, tmp_path).model_copy(update={"reconcile_interval": 3600})
    service = Service("job", settings, documents, [PAYLOADS])
    async with service.does(Parts(consumers={HEARD: heard})):
        await service.store.insert(PAYLOADS, first := payload(), told(first))
        await heard.count(1)
        left, new = payload(), payload()
        await documents.cas([Write(PAYLOADS, left.id, 0, left, (told(left),))])
        await heard.count(2)
        await service.store.insert(PAYLOADS, new, told(new))
        await heard.count(3)
        while await documents.unpublished(PAYLOADS, 0):
            await asyncio.sleep(0.01)
    assert heard.subjects == [f"payload.created.{each.id}" for each in (first, left, new)]
