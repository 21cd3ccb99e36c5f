"""The edge over a real nats-server and real documents; the owners behind it are tiny fakes on the real bus."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDictProxy
from structlog.testing import CapturingLogger
from yarl import URL

from gurney import clock, ids
from gurney.bus import Bus
from gurney.documents.port import Collection, D, Query, Write
from gurney.documents.sqlite import SqliteDocuments
from gurney.errors import FieldError, GurneyError, Internal, Invalid, NameTaken, NoRoom, NotFound, Unauthorized
from gurney.model.access import Role
from gurney.model.base import Idempotency, Message
from gurney.model.common import Empty, Health, Page
from gurney.model.handler import Delivery, DeliveryState, Handler
from gurney.model.job import Admission, Job, JobState, MapRef, RunRequest, StoryItem, Waiting, WaitReason
from gurney.model.map import Map, MapState
from gurney.model.payload import Payload, PayloadState
from gurney.model.resources import Amount, Resources
from gurney.model.run import Explain, Explained, Node, NodeState
from gurney.service import Parts, Service
from gurney.settings import Settings
from gurney.subjects import (
    HANDLER_CREATE,
    HANDLER_DELETE,
    HANDLER_DELIVERIES,
    HANDLER_GET,
    HANDLER_LIST,
    HANDLER_PATCH,
    HANDLER_TEST,
    HEALTH,
    JOB_CANCEL,
    JOB_CREATE,
    JOB_DELETE,
    JOB_EVENT,
    JOB_FINALIZE,
    JOB_GET,
    JOB_LIST,
    MAP_GET,
    MAP_LIST,
    MAP_REGISTER,
    MAP_RENAME,
    MAP_UNREGISTER,
    OPERATIONS,
    PAYLOAD_CREATE,
    PAYLOAD_DELETE,
    PAYLOAD_GET,
    PAYLOAD_HEALTH,
    PAYLOAD_LIST,
    PAYLOAD_RENAME,
    SCHEDULER_EXPLAIN,
    SCHEDULER_HEALTH,
    SCHEDULER_NODE,
    SCHEDULER_NODES,
    Operation,
)
from gurney.testing.nats import NatsServer
from services.edge import middleware
from services.edge import waiting as waits
from services.edge.__main__ import build
from services.edge.auth import ADMIN, Authenticator, ensure_token
from services.edge.call import Call, Edge, Route
from services.edge.parse import MAX_JSON
from services.edge.repository import TOKENS
from services.edge.routes import ROUTES
from services.edge.server import EdgeService, application
from services.edge.waiters import Waiters

SECRET = "gurney_administrator"
NOW = clock.now()

Reply = Message | GurneyError | Callable[[Any], Message | Awaitable[Message]]


class Owners:
    """Every service but the edge: answers what it was told to, and keeps the questions."""

    def __init__(self, settings: Settings) -> None:
        self.service = Service("owners", settings)
        self.replies: dict[str, Reply] = {}
        self.questions: list[Any] = []
        asked = [each for each in OPERATIONS if "edge" in each.askers]
        self.service.does(Parts(answers={each: self._answer(each) for each in asked}))

    def says(self, operation: Operation[Any, Any], reply: Reply) -> None:
        """Answer an operation so from now on."""
        self.replies[operation.subject] = reply

    def _answer(self, operation: Operation[Any, Any]) -> Any:
        async def answer(question: Message) -> Message:
            self.questions.append(question)
            reply = self.replies.get(operation.subject, NotFound("there is no such thing"))
            if isinstance(reply, GurneyError):
                raise reply
            made = reply if isinstance(reply, Message) else reply(question)
            return made if isinstance(made, Message) else await made

        return answer


class LateDocuments(SqliteDocuments):
    """Documents whose answers by key come late: `asked` tells that one is read, `late` lets it go."""

    def __init__(self, path: Path, **more: Any) -> None:
        super().__init__(path, **more)
        self.asked = asyncio.Event()
        self.late = asyncio.Event()

    async def by_key(self, collection: Collection[D], key: str) -> D | None:
        found = await super().by_key(collection, key)
        self.asked.set()
        await self.late.wait()
        return found


class Answer:
    """An answer of the edge."""

    def __init__(self, status: int, headers: CIMultiDictProxy[str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def fields(self) -> list[str]:
        """The fields that a problem document names."""
        return [fault["field"] for fault in self.json["errors"]]


class Client:
    """Speaks HTTP to the edge with a token."""

    def __init__(self, session: ClientSession, url: str, token: str | None = SECRET) -> None:
        self._session = session
        self.url = url
        self._token = token

    def with_token(self, token: str | None) -> "Client":
        """Return a client of another token."""
        return Client(self._session, self.url, token)

    async def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        headers = more.pop("headers", {})
        if self._token:
            headers = {"Authorization": f"Bearer {self._token}"} | headers
        async with self._session.request(method, self.url + path, json=body, headers=headers, **more) as answer:
            return Answer(answer.status, answer.headers, await answer.read())


@pytest.fixture
def settings(nats_server: NatsServer, tmp_path: Path) -> Settings:
    """Settings of one edge on a free port."""
    return Settings(nats_url=nats_server.url, data=tmp_path, port=0, request_timeout=2, sync="normal")


@pytest.fixture
async def owners(settings: Settings) -> AsyncIterator[Owners]:
    """The services behind the edge."""
    found = Owners(settings)
    async with found.service:
        yield found


@pytest.fixture
async def client(settings: Settings, owners: Owners) -> AsyncIterator[Client]:
    """A client with an administrator's token of a running edge."""
    del owners
    documents = SqliteDocuments(settings.data / "documents.db", sync="normal")
    async with build(settings, documents=documents, admin_token=SECRET) as edge, ClientSession() as session:
        yield Client(session, edge.url)
    await documents.close()


async def test_a_client_has_his_token_from_the_first_request_on(
    settings: Settings, owners: Owners, tmp_path: Path
) -> None:
    """The token in a client's file has his role, and a second start makes no second one of it."""
    del owners
    told = settings.model_copy(update={"client_tokens": {"mis": Role.DEVELOPER}, "secrets_dir": tmp_path})
    await asyncio.to_thread((tmp_path / "gurney_mis_token").write_text, "gurney_mine\n")
    documents = SqliteDocuments(settings.data / "documents.db", sync="normal")
    for _ in range(2):
        edge = await asyncio.to_thread(build, told, documents=documents, admin_token=SECRET)
        async with edge, ClientSession() as session:
            me = await Client(session, edge.url).with_token("gurney_mine")("GET", "/v1/whoami")
            assert (me.json["subject"], me.json["role"]) == ("mis", "developer")
    assert sorted(each.subject for each in await documents.find(TOKENS, Query())) == ["admin", "mis"]
    await documents.close()


async def token_of(client: Client, role: str, **more: Any) -> Client:
    """Return a client whose token has a role."""
    made = await client("POST", "/v1/tokens", {"subject": role, "role": role} | more)
    assert made.status == 201, made.body
    return client.with_token(made.json["token"])


def a_map(**more: Any) -> Map:
    """Return a ready MAP."""
    state = more.pop("state", MapState.READY)
    key = Idempotency(key="private", digest="private")
    return Map(id=ids.new_id("map"), urn="urn:gurney:dir:x", state=state, created_at=NOW, idempotency=key, **more)


def a_payload(**more: Any) -> Payload:
    """Return an open payload."""
    return Payload(id=ids.new_id("pay"), state=PayloadState.OPEN, created_at=NOW, updated_at=NOW, **more)


def a_job(state: JobState = JobState.REQUESTED, **more: Any) -> Job:
    """Return a job."""
    request = RunRequest(
        urn="urn:gurney:dir:x",
        digest="d",
        generation="monai",
        command=("true",),
        input_path="/in",
        output_path="/out",
        payload=ids.new_id("pay"),
        resources=Resources(cpu=1),
    )
    values = {
        "id": ids.new_id("job"),
        "map": MapRef(id=ids.new_id("map"), urn=request.urn, digest="d"),
        "payload": request.payload,
        "state": state,
        "resources": request.resources,
        "admission": Admission.QUEUE,
        "request": request,
        "created_at": NOW,
    }
    return Job(**(values | more))


def a_handler(**more: Any) -> Handler:
    """Return a job handler."""
    return Handler(id=ids.new_id("hdl"), url="http://127.0.0.1:1/", events=("job.failed",), created_at=NOW, **more)


# --- who may ---


async def test_without_a_token_nothing_is_told(client: Client) -> None:
    """Every route of the API answers 401 without a token or with a wrong one, and names the scheme."""
    for route in ROUTES:
        for who in (client.with_token(None), client.with_token("gurney_wrong")):
            if route.path.startswith("/v1/"):
                answer = await who(route.method, route.path.replace("{", "").replace("}", ""))
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), route.path
                assert route.method == "HEAD" or answer.json["code"] == "unauthorized"


async def test_roles_are_those_of_the_table(client: Client, owners: Owners) -> None:
    """A role that the table does not name gets 403 on that route and nobody is asked."""
    del owners
    for role in ("clinician", "developer"):
        who = await token_of(client, role)
        for route in (each for each in ROUTES if each.roles):
            answer = await who(route.method, route.path.replace("{", "").replace("}", "") + "?nonsense=1")
            assert answer.status == (422 if role in route.roles else 403), (role, route.method, route.path)


async def test_token_is_told_once(client: Client) -> None:
    """The secret of a token is in the answer to its creation and nowhere else."""
    body = {"subject": "ada", "name": "laptop", "role": "developer", "project": "lung"}
    made = await client("POST", "/v1/tokens", body)
    assert made.headers["Location"] == f"/v1/tokens/{made.json['id']}"
    assert made.json["token"].startswith("gurney_")
    who = await client.with_token(made.json["token"])("GET", "/v1/whoami")
    assert who.json == {key: value for key, value in made.json.items() if key != "token"}
    assert set(who.json) == {"id", "subject", "name", "project", "role", "created_at", "expires_at"}
    listed = await client("GET", "/v1/tokens")
    assert made.json["token"] not in listed.body.decode()
    assert [each["subject"] for each in listed.json["items"]] == ["ada", "admin"]


async def test_deleted_token_is_refused_at_once(client: Client) -> None:
    """A token that was just used is refused the moment that its deletion is answered; a second DELETE is 404."""
    made = (await client("POST", "/v1/tokens", {"subject": "ada", "role": "clinician"})).json
    who = client.with_token(made["token"])
    assert (await who("GET", "/v1/maps")).status == 404
    assert (await client("DELETE", f"/v1/tokens/{made['id']}")).status == 204
    assert (await who("GET", "/v1/maps")).status == 401
    assert (await client("DELETE", f"/v1/tokens/{made['id']}")).status == 404


async def test_token_deleted_while_it_is_looked_up_is_not_remembered(tmp_path: Path) -> None:
    """A lookup that was under way when its token was deleted does not bring it back for the next request."""
    documents = LateDocuments(tmp_path / "documents.db", sync="normal")
    await ensure_token(documents, SECRET, ADMIN, Role.ADMINISTRATOR)
    authenticator = Authenticator(documents)
    first = asyncio.create_task(authenticator.caller(f"Bearer {SECRET}"))
    await documents.asked.wait()
    (token,) = await documents.find(TOKENS, Query())
    assert await documents.cas([Write(TOKENS, token.id, token.revision, None)]) == [None]
    authenticator.forget(token)
    documents.late.set()
    assert (await first).subject == "admin"
    with pytest.raises(Unauthorized):
        await authenticator.caller(f"Bearer {SECRET}")
    await documents.close()


async def test_expired_token_is_refused(client: Client) -> None:
    """A token ends at its time, although it was used shortly before."""
    soon = clock.now() + timedelta(milliseconds=300)
    who = await token_of(client, "clinician", expires_at=soon.isoformat())
    while (answer := await who("GET", "/v1/whoami")).status == 200:
        assert clock.now() < soon + timedelta(seconds=5)
    assert answer.status == 401
    assert clock.now() >= soon


async def test_token_must_expire_in_the_future(client: Client) -> None:
    """A token that would be born dead is refused."""
    answer = await client(
        "POST", "/v1/tokens", {"subject": "a", "role": "clinician", "expires_at": "2020-01-01T00:00:00Z"}
    )
    assert (answer.status, answer.fields) == (422, ["expires_at"])


async def test_tokens_are_paged(client: Client) -> None:
    """Pages of tokens are newest first, complete and without repetition; only a null cursor ends them."""
    for number in range(4):
        await token_of(client, "clinician", name=str(number))
    names: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client("GET", "/v1/tokens?limit=2" + (f"&cursor={cursor}" if cursor else ""))).json
        names += [each["name"] for each in page["items"]]
        cursor = page["next_cursor"]
    assert names == ["3", "2", "1", "0", None]
    assert (await client("GET", "/v1/tokens?cursor=nonsense")).fields == ["cursor"]


async def test_administrators_secret_survives_a_restart(settings: Settings, owners: Owners) -> None:
    """An edge that starts again with the same secret takes it, and makes no second token of it."""
    del owners
    documents = SqliteDocuments(settings.data / "documents.db", sync="normal")
    for _ in range(2):
        async with build(settings, documents=documents, admin_token=SECRET) as edge, ClientSession() as session:
            assert len((await Client(session, edge.url)("GET", "/v1/tokens")).json["items"]) == 1
        assert edge.url == ""
    await documents.close()


# --- MAPs and payloads ---


async def test_register_asks_the_owner(client: Client, owners: Owners) -> None:
    """A registration reaches the owner with caller and key, and answers 202 with a place and no private field."""
    owners.says(MAP_REGISTER, a_map(state=MapState.REGISTERING))
    made = await client("POST", "/v1/maps", {"urn": "urn:gurney:dir:x"}, headers={"Idempotency-Key": "one"})
    assert (made.status, made.headers["Location"]) == (202, f"/v1/maps/{made.json['id']}")
    assert made.json["state"] == "registering"
    assert b"private" not in made.body
    (question,) = owners.questions
    assert (question.caller.subject, question.body.urn, question.dry_run) == ("admin", "urn:gurney:dir:x", False)
    assert question.idempotency.key == f"{question.caller.token}:POST /v1/maps:one"


async def test_dry_run_has_no_id(client: Client, owners: Owners) -> None:
    """A dry run answers 200 with what would be there, without id and place, and keeps no key."""
    owners.says(MAP_REGISTER, a_map())
    owners.says(JOB_CREATE, a_job())
    for path, body in (("/v1/maps", {"urn": "x"}), ("/v1/jobs", {"map": "m", "payload": "p"})):
        made = await client("POST", f"{path}?dry_run=true", body, headers={"Idempotency-Key": "one"})
        assert (made.status, made.json["id"]) == (200, None)
        assert "Location" not in made.headers
    assert [(each.dry_run, each.idempotency) for each in owners.questions] == [(True, None), (True, None)]


async def test_same_body_has_the_same_digest(client: Client, owners: Owners) -> None:
    """The owner can tell a repetition from another body under the same key, however the body is written."""
    owners.says(PAYLOAD_CREATE, a_payload())
    for raw in ('{"name":"a","keep":true}', '{ "keep": true, "name": "a" }', '{"name":"b","keep":true}'):
        headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
        assert (await client("POST", "/v1/payloads", data=raw, headers=headers)).status == 201
    first, second, third = (each.idempotency for each in owners.questions)
    assert first == second
    assert first.key == third.key
    assert first.digest != third.digest


async def test_maps_are_listed_with_all_filters(client: Client, owners: Owners) -> None:
    """Filters reach the owner, and items leave out what lists leave out."""
    owners.says(MAP_LIST, Page[Map](items=(a_map(name="lung"),), next_cursor="next"))
    listed = await client("GET", "/v1/maps?name=lung&state=ready&urn=u&label=a=b&label=c=d=e&limit=5&cursor=c")
    (question,) = owners.questions
    assert (question.name, question.state, question.urn) == ("lung", MapState.READY, "u")
    assert (question.labels, question.limit, question.cursor) == ((("a", "b"), ("c", "d=e")), 5, "c")
    assert listed.json["next_cursor"] == "next"
    assert "manifests" not in listed.json["items"][0]
    assert listed.json["items"][0]["name"] == "lung"


async def test_names_reach_the_owner_unchanged(client: Client, owners: Owners) -> None:
    """A name in a path may hold any printable character but a slash."""
    owners.says(MAP_GET, a_map())
    owners.says(PAYLOAD_GET, a_payload())
    for name, written in (("größe {1} %", "gr%C3%B6%C3%9Fe%20%7B1%7D%20%25"), ("a?b#c;d", "a%3Fb%23c%3Bd")):
        assert (await client("GET", f"/v1/maps/{written}")).status == 200
        assert (await client("GET", f"/v1/payloads/{written}")).status == 200
        assert [each.ref for each in owners.questions[-2:]] == [name, name]


async def test_maps_are_named_and_unregistered(client: Client, owners: Owners) -> None:
    """A name is set and removed through the owner, whose refusals come through."""
    owners.says(MAP_RENAME, lambda question: a_map(name=question.name))
    owners.says(MAP_UNREGISTER, Empty())
    assert (await client("PUT", "/v1/maps/m/name", {"name": "lung"})).json["name"] == "lung"
    removed = await client("DELETE", "/v1/maps/m/name")
    assert (removed.status, removed.body, owners.questions[-1].name) == (204, b"", None)
    assert (await client("DELETE", "/v1/maps/m")).status == 204
    owners.says(MAP_RENAME, NameTaken("lung is taken"))
    taken = await client("PUT", "/v1/maps/m/name", {"name": "lung"})
    assert (taken.status, taken.json["code"]) == (409, "name_taken")


async def test_payloads_come_and_go(client: Client, owners: Owners) -> None:
    """A payload is made from an empty body, too; it is read, listed, named and deleted."""
    payload = a_payload(run="job_x-1")
    owners.says(PAYLOAD_CREATE, payload)
    owners.says(PAYLOAD_GET, payload)
    owners.says(PAYLOAD_LIST, Page[Payload](items=(payload,)))
    owners.says(PAYLOAD_RENAME, lambda question: payload.but(name=question.name))
    owners.says(PAYLOAD_DELETE, Empty())
    made = await client("POST", "/v1/payloads")
    assert (made.status, made.headers["Location"]) == (201, f"/v1/payloads/{payload.id}")
    assert "run" not in made.json
    assert (await client("GET", f"/v1/payloads/{payload.id}")).json == made.json
    assert (await client("GET", "/v1/payloads?state=open")).json == {"items": [made.json], "next_cursor": None}
    assert (await client("PUT", "/v1/payloads/p/name", {"name": "scan"})).json["name"] == "scan"
    assert (await client("DELETE", "/v1/payloads/p/name")).status == 204
    assert (await client("DELETE", "/v1/payloads/p")).status == 204


# --- jobs ---


async def test_job_is_made_and_read(client: Client, owners: Owners) -> None:
    """A job answers 201 with its place; what is private stays inside, its story has a route of its own."""
    story = (StoryItem(at=NOW, event="requested", attempt=1),)
    job = a_job(JobState.RUNNING, story=story)
    owners.says(JOB_CREATE, job)
    owners.says(JOB_GET, job)
    made = await client("POST", "/v1/jobs", {"map": "m", "payload": "p", "resources": {"cpu": 0.5}})
    assert (made.status, made.headers["Location"]) == (201, f"/v1/jobs/{job.id}")
    assert owners.questions[0].body.resources.cpu == 0.5
    assert not {"request", "story", "folded", "idempotency"} & set(made.json)
    assert (await client("GET", f"/v1/jobs/{job.id}")).json == made.json
    told = (await client("GET", f"/v1/jobs/{job.id}/story")).json["items"]
    assert [(each["event"], each["attempt"]) for each in told] == [("requested", 1)]


async def test_waiting_job_says_why(client: Client, owners: Owners) -> None:
    """One job that waits is told with the scheduler's reasons, and without them while the scheduler is away."""
    job = a_job()
    owners.says(JOB_GET, job)
    waiting = Waiting(position=3, reasons=(WaitReason(code="no_memory", count=1, message="short of memory"),))
    owners.says(SCHEDULER_EXPLAIN, Explained(waiting=waiting))
    assert (await client("GET", f"/v1/jobs/{job.id}")).json["waiting"]["reasons"][0]["code"] == "no_memory"
    for role in Role:
        await (await token_of(client, role))("GET", f"/v1/jobs/{job.id}")
        asked = [each for each in owners.questions if isinstance(each, Explain)][-1]
        assert asked.names is (role is Role.ADMINISTRATOR), "ids of others' runs are for administrators"
    owners.says(SCHEDULER_EXPLAIN, NoRoom("no leader"))
    answer = await client("GET", f"/v1/jobs/{job.id}")
    assert (answer.status, answer.json["waiting"]) == (200, None)


async def test_job_paths_take_ids_only(client: Client, owners: Owners) -> None:
    """What has not the form of a job's id is not there, and nobody is asked."""
    for path in (
        "/v1/jobs/name",
        f"/v1/jobs/{ids.new_id('map')}",
        "/v1/jobs/x/story",
        "/v1/handlers/x",
        "/v1/tokens/x",
    ):
        method = "DELETE" if "tokens" in path else "GET"
        assert (await client(method, path)).json["code"] == "not_found"
    assert owners.questions == []


@pytest.fixture
def only_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a job does not look himself: what he learns he was told."""
    monkeypatch.setattr(waits, "LOOK_AGAIN_S", 3600.0)


def told_running(owners: Owners, job: Job) -> asyncio.Event:
    """Let the job run; returns an event that is set once somebody has asked."""
    asked = asyncio.Event()

    def running(_: Any) -> Job:
        asked.set()
        return job

    owners.says(JOB_GET, running)
    return asked


async def tell(owners: Owners, event: str, job: Job) -> None:
    """Publish an event of a job, as its owner does."""
    await owners.service.bus.publish(JOB_EVENT.of(event=event, job_id=job.id), b"{}")


@pytest.mark.usefixtures("only_messages")
@pytest.mark.timeout(20)
async def test_waiting_client_is_told_of_the_end(client: Client, owners: Owners) -> None:
    """`Prefer: wait` answers when the owner says that the job ended, with the job as it is then."""
    job = a_job(JobState.RUNNING)
    asked = told_running(owners, job)
    waiting = asyncio.create_task(client("GET", f"/v1/jobs/{job.id}", headers={"Prefer": "wait=60"}))
    await asked.wait()
    owners.says(JOB_GET, job.but(state=JobState.SUCCEEDED, exit_code=0))
    await tell(owners, "progress", job)
    await tell(owners, "succeeded", a_job())
    await tell(owners, "succeeded", job)
    answer = await waiting
    assert (answer.status, answer.json["state"]) == (200, "succeeded")
    assert answer.headers["Preference-Applied"] == "wait=60"
    assert len(owners.questions) == 2


@pytest.mark.usefixtures("only_messages")
@pytest.mark.timeout(20)
async def test_end_during_the_first_look_is_not_missed(client: Client, owners: Owners, settings: Settings) -> None:
    """A job that ends while it is read is answered at once: the wait begins before the reading."""
    job = a_job(JobState.RUNNING)
    heard = asyncio.Event()

    async def hears(_: Any) -> None:
        heard.set()

    async def read(_: Any) -> Job:
        if len(owners.questions) > 1:
            return job.but(state=JobState.FAILED)
        await tell(owners, "failed", job)
        await heard.wait()
        return job

    owners.says(JOB_GET, read)
    other = Bus(settings, "other")
    await other.connect()
    await other.subscribe(JOB_EVENT.of(event="failed", job_id="*"), hears)
    await other.raw.flush()
    answer = await client("GET", f"/v1/jobs/{job.id}", headers={"Prefer": "wait=60"})
    await other.close()
    assert answer.json["state"] == "failed"
    assert len(owners.questions) == 2


@pytest.mark.usefixtures("only_messages")
@pytest.mark.timeout(20)
async def test_job_deleted_during_a_wait_is_gone(client: Client, owners: Owners) -> None:
    """Who waits for a job that is deleted meanwhile learns at once that it is not there."""
    job = a_job(JobState.RUNNING)
    asked = told_running(owners, job)
    waiting = asyncio.create_task(client("GET", f"/v1/jobs/{job.id}", headers={"Prefer": "wait=60"}))
    await asked.wait()
    owners.says(JOB_GET, NotFound("it is gone"))
    await tell(owners, "deleted", job)
    assert (await waiting).status == 404


async def test_lost_message_only_costs_time(client: Client, owners: Owners, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose last message was lost is answered all the same: whoever waits looks himself at times."""
    monkeypatch.setattr(waits, "LOOK_AGAIN_S", 0.02)
    job = a_job(JobState.RUNNING)
    owners.says(JOB_GET, lambda _: job.but(state=JobState.CANCELED) if len(owners.questions) > 2 else job)
    answer = await client("GET", f"/v1/jobs/{job.id}", headers={"Prefer": "wait=60"})
    assert answer.json["state"] == "canceled"


async def test_wait_ends_after_its_time(client: Client, owners: Owners) -> None:
    """A job that does not end in time is answered as it is; a wait that is no number is refused."""
    job = a_job(JobState.SCHEDULED)
    owners.says(JOB_GET, job)
    answer = await client("GET", f"/v1/jobs/{job.id}", headers={"Prefer": "wait=1"})
    assert (answer.status, answer.json["state"]) == (200, "scheduled")
    assert (await client("GET", f"/v1/jobs/{job.id}", headers={"Prefer": "wait=soon"})).fields == ["Prefer"]


@pytest.mark.usefixtures("only_messages")
@pytest.mark.timeout(20)
async def test_stop_ends_a_wait_with_an_answer(settings: Settings, owners: Owners) -> None:
    """Who waits for a job when the server stops gets the job as it is, not a broken connection."""
    job = a_job(JobState.RUNNING)
    asked = told_running(owners, job)
    documents = SqliteDocuments(settings.data / "documents.db", sync="normal")
    async with ClientSession() as session:
        async with build(settings, documents=documents, admin_token=SECRET) as edge:
            client = Client(session, edge.url)
            waiting = asyncio.create_task(client("GET", f"/v1/jobs/{job.id}", headers={"Prefer": "wait=60"}))
            await asked.wait()
        assert ((await waiting).status, (await waiting).json["state"]) == (200, "running")
    await documents.close()


async def test_jobs_are_listed_canceled_finalized_deleted(client: Client, owners: Owners) -> None:
    """Each reaches the owner; a cancel answers 202 until the job is canceled, then 200."""
    job = a_job(JobState.RUNNING, log_tail=("a line",))
    owners.says(JOB_LIST, Page[Job](items=(job,)))
    owners.says(JOB_CANCEL, job)
    owners.says(JOB_FINALIZE, job)
    owners.says(JOB_DELETE, Empty())
    item = (await client("GET", "/v1/jobs?state=running&completed_after=2026-01-01T00:00:00Z")).json["items"][0]
    assert not {"log_tail", "waiting", "metadata", "usage", "timings", "request"} & set(item)
    assert (await client("POST", f"/v1/jobs/{job.id}/cancel")).status == 202
    owners.says(JOB_CANCEL, job.but(state=JobState.CANCELED))
    assert (await client("POST", f"/v1/jobs/{job.id}/cancel")).status == 200
    assert (await client("POST", f"/v1/jobs/{job.id}/finalize")).json["id"] == job.id
    assert (await client("DELETE", f"/v1/jobs/{job.id}")).status == 204


# --- handlers and nodes ---


async def test_handlers_reach_the_notifier(client: Client, owners: Owners) -> None:
    """Handlers are made, read, listed, changed, tried and deleted through their owner."""
    handler = a_handler()
    delivery = Delivery(
        id=ids.new_id("dlv"), event="e", handler=handler.id, state=DeliveryState.PENDING, created_at=NOW, body="inside"
    )
    owners.says(HANDLER_CREATE, handler.but(secret="whsec_x"))
    owners.says(HANDLER_GET, handler)
    owners.says(HANDLER_LIST, Page[Handler](items=(handler,)))
    owners.says(HANDLER_PATCH, lambda question: handler.but(state=question.body.state))
    owners.says(HANDLER_TEST, delivery)
    owners.says(HANDLER_DELIVERIES, Page[Delivery](items=(delivery,)))
    owners.says(HANDLER_DELETE, Empty())
    path = f"/v1/handlers/{handler.id}"
    made = await client("POST", "/v1/handlers", {"url": handler.url})
    assert (made.status, made.json["secret"], made.headers["Location"]) == (201, "whsec_x", path)
    assert (await client("GET", path)).json["secret"] is None
    assert (await client("GET", "/v1/handlers?limit=3")).json["items"][0]["id"] == handler.id
    assert (await client("PATCH", path, {"state": "disabled"})).json["state"] == "disabled"
    tried = await client("POST", f"{path}/test")
    assert (tried.status, tried.json["state"]) == (202, "pending")
    assert (await client("GET", f"{path}/deliveries")).json["items"] == [tried.json]
    assert b"inside" not in tried.body
    assert (await client("DELETE", path)).status == 204


async def test_nodes_are_read(client: Client, owners: Owners) -> None:
    """Nodes are listed and read through the scheduler."""
    node = Node(id="n1", state=NodeState.READY, capacity=Amount(cpu=2), last_seen_at=NOW)
    owners.says(SCHEDULER_NODES, Page[Node](items=(node,)))
    owners.says(SCHEDULER_NODE, node)
    assert (await client("GET", "/v1/nodes")).json["items"] == [(await client("GET", "/v1/nodes/n1")).json]


# --- what bad input gets ---


async def test_bodies_are_refused_with_a_reason(client: Client, owners: Owners) -> None:
    """Wrong type 415, too large 413, malformed or unfitting 422 with the field; the owner is not asked."""
    for route in (each for each in ROUTES if each.body):
        path = route.path.replace("{map}", "m").replace("{payload}", "p").replace("{handler}", ids.new_id("hdl"))
        as_json = {"Content-Type": "application/json"}
        large = await client(route.method, path, data=b" " * (MAX_JSON + 1), headers=as_json)
        assert (large.status, large.json["code"]) == (413, "too_large")
        typed = await client(route.method, path, data=b"{}", headers={"Content-Type": "text/plain"})
        assert (typed.status, typed.json["code"]) == (415, "unsupported_type")
        broken = await client(route.method, path, data=b"{", headers=as_json)
        assert (broken.status, broken.fields) == (422, ["body"])
        packed = await client(route.method, path, data=b"{}", headers=as_json | {"Content-Encoding": "gzip"})
        assert (packed.status, packed.json["code"]) == (415, "unsupported_type")
        unknown = await client(route.method, path, {"colour": "red"})
        assert unknown.status == 422
        assert "colour" in unknown.fields
    assert owners.questions == []


async def test_unusable_key_is_refused(client: Client, owners: Owners) -> None:
    """An Idempotency-Key that is too long is refused before anything is made."""
    answer = await client("POST", "/v1/payloads", {}, headers={"Idempotency-Key": "k" * 256})
    assert (answer.status, answer.fields, owners.questions) == (422, ["Idempotency-Key"], [])


async def test_refusals_of_owners_come_through(client: Client, owners: Owners) -> None:
    """A refusal of an owner keeps status, code, fields and the time to come again."""
    owners.says(MAP_REGISTER, Invalid("urn: is no URN", (FieldError(field="urn", message="is no URN"),)))
    refused = await client("POST", "/v1/maps", {"urn": "x"})
    assert (refused.status, refused.fields) == (422, ["urn"])
    owners.says(JOB_CREATE, NoRoom("short of memory", retry_after_s=7))
    full = await client("POST", "/v1/jobs", {"map": "m", "payload": "p"})
    assert (full.status, full.json["code"], full.headers["Retry-After"]) == (503, "no_room", "7")


async def test_unknown_paths_and_methods_are_problems(client: Client) -> None:
    """A path that is not there is 404, a method that it does not take 405 with those that it does."""
    missing = await client("GET", "/v1/nothing")
    assert (missing.status, missing.json["code"]) == (404, "not_found")
    wrong = await client("PUT", "/v1/maps")
    assert (wrong.status, wrong.json["code"]) == (405, "method_not_allowed")
    assert set(wrong.headers["Allow"].split(",")) == {"GET", "POST"}


async def test_without_nats_it_says_so(own_nats_server: NatsServer, tmp_path: Path) -> None:
    """With NATS away the edge is alive but not ready, and answers 503 with Retry-After."""
    settings = Settings(nats_url=own_nats_server.url, data=tmp_path, port=0, request_timeout=1, sync="normal")
    documents = SqliteDocuments(tmp_path / "documents.db", sync="normal")
    async with build(settings, documents=documents, admin_token=SECRET) as edge, ClientSession() as session:
        client = Client(session, edge.url)
        ready = await client("GET", "/readyz")
        assert (ready.status, ready.fields) == (503, list(HEALTH))
        nobody = await client("GET", "/v1/maps")
        assert (nobody.status, nobody.json["code"]) == (503, "nats_unavailable")
        own_nats_server.kill()
        while "nats" not in (ready := await client("GET", "/readyz")).fields:
            pass
        assert (ready.status, ready.fields) == (503, ["nats"])
        assert (await client("GET", "/livez")).status == 200
        away = await client("GET", "/v1/maps")
        assert (away.status, away.headers["Retry-After"]) == (503, "1")
        assert (await client("GET", "/v1/whoami")).status == 200
    await documents.close()


async def test_readiness_names_each_part_that_is_away(client: Client, owners: Owners) -> None:
    """The edge is ready when every service and what it stands on is there; else it says which part is not."""
    for operation in HEALTH.values():
        owners.says(operation, Health(status="ready", parts={"nats": "ready", "documents": "ready"}))
    owners.says(PAYLOAD_HEALTH, Health(status="ready", parts={"objects": "ready"}))
    parts = dict.fromkeys(("nats", "documents", "objects", *HEALTH), "ready")
    assert (await client("GET", "/readyz")).json == {"status": "ready", "parts": parts}
    owners.says(PAYLOAD_HEALTH, Health(status="away", parts={"documents": "ready", "objects": "away"}))
    owners.says(SCHEDULER_HEALTH, Internal("a defect"))
    away = await client("GET", "/readyz")
    assert (away.status, set(away.fields)) == (503, {"objects", "scheduler"})


async def test_a_token_that_one_edge_deletes_is_refused_by_the_others(settings: Settings, client: Client) -> None:
    """Edges remember tokens; a deletion through one of them takes effect at all of them at once."""
    documents = SqliteDocuments(settings.data / "documents.db", sync="normal")
    async with build(settings, documents=documents) as second, ClientSession() as session:
        other = Client(session, second.url)
        made = (await client("POST", "/v1/tokens", {"subject": "ann", "role": "clinician"})).json
        ann = other.with_token(made["token"])
        assert (await ann("GET", "/v1/whoami")).status == 200
        assert (await client("DELETE", f"/v1/tokens/{made['id']}")).status == 204
        assert (await ann("GET", "/v1/handlers")).status == 401
    await documents.close()


# --- descriptions, figures, traces ---


async def test_descriptions_need_no_token(client: Client) -> None:
    """The documents and the page are there for everybody, and the page may load nothing from elsewhere."""
    anybody = client.with_token(None)
    assert (await anybody("GET", "/openapi.json")).json["openapi"] == "3.1.0"
    assert (await anybody("GET", "/asyncapi.json")).json["asyncapi"] == "3.0.0"
    page = await anybody("GET", "/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


async def test_metrics_count_by_template(client: Client, owners: Owners) -> None:
    """Requests are counted by the template of their route, so that no name becomes a label."""
    owners.says(MAP_GET, a_map())
    await client("GET", "/v1/maps/anna-meier")
    text = (await client.with_token(None)("GET", "/metrics")).body.decode()
    assert 'gurney_http_requests_total{method="GET",route="/v1/maps/{map}",status="200"}' in text
    assert "anna-meier" not in text


async def test_metrics_can_be_kept_to_administrators(settings: Settings, owners: Owners) -> None:
    """Where the setting says so, figures are for administrators only."""
    del owners
    documents = SqliteDocuments(settings.data / "documents.db", sync="normal")
    closed = settings.model_copy(update={"metrics_public": False})
    async with build(closed, documents=documents, admin_token=SECRET) as edge, ClientSession() as session:
        client = Client(session, edge.url)
        assert (await client.with_token(None)("GET", "/metrics")).status == 401
        assert (await (await token_of(client, "developer"))("GET", "/metrics")).status == 403
        assert (await client("GET", "/metrics")).status == 200
    await documents.close()


async def test_trace_of_the_client_goes_on(client: Client) -> None:
    """The client's trace context is taken up; a problem names the trace and so does a header."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = await client("GET", "/v1/nothing", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    assert answer.json["trace_id"] == trace
    assert answer.headers["Traceparent"].split("-")[1] == trace
    assert len((await client("GET", "/v1/nothing")).json["trace_id"]) == 32


async def test_log_names_no_name(client: Client, owners: Owners, monkeypatch: pytest.MonkeyPatch) -> None:
    """The access log has the template of a route, not the path, the query or the token."""
    log = CapturingLogger()
    monkeypatch.setattr(middleware, "_log", log)
    owners.says(MAP_LIST, Page[Map](items=()))
    await client("GET", "/v1/maps/anna-meier")
    await client("GET", "/v1/maps?name=anna-meier")
    told = [call.kwargs for call in log.calls]
    assert [(each["route"], each["status"]) for each in told] == [("/v1/maps/{map}", 404), ("/v1/maps", 200)]
    assert [set(each) - {"method", "route", "status", "ms"} for each in told] == [
        {"by", "token", "project", "about"},
        set(),
    ]


async def test_port_in_use_is_said_plainly(client: Client, settings: Settings) -> None:
    """An edge whose port is taken says which."""
    taken = settings.model_copy(update={"port": int(client.url.rpartition(":")[2])})
    documents = SqliteDocuments(settings.data / "documents.db", sync="normal")
    with pytest.raises(GurneyError, match=f"cannot listen on 127.0.0.1:{taken.port}"):
        await build(taken, documents=documents).__aenter__()
    await documents.close()


async def test_stream_that_breaks_is_no_second_answer(settings: Settings) -> None:
    """An error after the head of an answer went out breaks the connection: the client sees that it lacks the rest."""

    async def breaks(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(call.request)
        await response.write(b"the beginning")
        raise NotFound("the rest is not there")

    documents = SqliteDocuments(settings.data / "documents.db", sync="normal")
    service = EdgeService(settings, documents)
    edge = Edge(
        settings=settings,
        bus=service.bus,
        store=service.store,
        authenticator=Authenticator(documents),
        waiters=Waiters(service.bus),
        routes=[Route(method="GET", path="/x/{path}", view=breaks, roles=frozenset(), summary="Breaks")],
    )
    async with (
        TestServer(application(edge)) as server,
        ClientSession() as session,
        session.get(URL(f"{server.make_url('/x/')}a//b%0Ac/%2E%2E/", encoded=True)) as answer,
    ):
        assert (answer.status, "Traceparent" in answer.headers) == (200, True)
        with pytest.raises(ClientError):
            await answer.read()
