"""Each user of `gurney credentials` at a real nats-server: its own subjects, and no foreign one."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from pydantic import SecretStr

from gurney import subjects as table
from gurney.connection import Connection
from gurney.credentials import USERS, generate, password_file
from gurney.errors import Invalid
from gurney.permissions import SERVICES
from gurney.settings import Settings
from gurney.streams import CONSUMERS, STREAMS, Consumer, agent_runs
from gurney.subjects import NOTICES, OPERATIONS, SUBJECTS
from gurney.testing.nats import NatsServer

NODES = ("n1", "n2")
AGENTS = frozenset(f"agent-{node}" for node in NODES)
EVERYBODY = (*SERVICES, *sorted(AGENTS), "integrator")
READS = {"EVENTS": {"edge"}, "LOGS": {"edge"}, "KV_heartbeats": {"scheduler"}}
NOBODY: frozenset[str] = frozenset()

_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]+)\"", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """A subject, who may publish it and who may subscribe to it."""

    subject: str
    publish: frozenset[str] = NOBODY
    subscribe: frozenset[str] = NOBODY


def cases() -> Iterator[Case]:
    """Every subject of the tables with what they say of it, and what of NATS itself lies near."""
    yield from _operations()
    yield from _subjects()
    yield from _streams()
    for each in (*CONSUMERS, *map(agent_runs, NODES)):
        yield from _consumer(each)
    for notice in NOTICES:
        yield Case(notice.subject, frozenset({notice.service}), frozenset({notice.service}))
    for user in (*EVERYBODY, "operator"):
        yield Case(f"_INBOX_{user}.x", subscribe=frozenset({user} - {"integrator", "operator"}))
    for subject in (
        ">",
        "*",
        "*.>",
        "$JS.>",
        "$SYS.>",
        "_INBOX.x",
        "_INBOX.>",
        "svc.>",
        "run.>",
        "report.>",
        "unheard",
    ):
        yield Case(subject)
    for subject in ("job.>", "map.>", "payload.>"):
        yield Case(subject, subscribe=frozenset({"integrator"}))


def _operations() -> Iterator[Case]:
    for operation in OPERATIONS:
        answered = frozenset({operation.service})
        yield Case(operation.subject, frozenset(operation.askers) - {"agent"}, answered)
        for node in NODES:
            asked = "agent" in operation.askers
            may = frozenset({f"agent-{node}"}) if asked else NOBODY
            yield Case(operation.asked_by(node), may, answered if asked else NOBODY)
    for service in SERVICES:
        answers = any(operation.service == service for operation in OPERATIONS)
        heard = frozenset({service}) if answers else NOBODY
        yield Case(f"$SRV.PING.gurney-{service}", frozenset({service}), heard)
        yield Case(f"$SRV.INFO.gurney-{service}.x", NOBODY, heard)


def _subjects() -> Iterator[Case]:
    for subject in SUBJECTS:
        tokens = dict.fromkeys(re.findall(r"\{(\w+)\}", subject.template), "x")
        heard = frozenset(subject.live)
        if subject.template.startswith(("job.", "map.", "payload.")):
            heard |= {"integrator"}
        for node in NODES:
            told = subject.of(**tokens | ({"node_id": node} if "node_id" in tokens else {}))
            by = f"agent-{node}" if subject.publisher == "agent" else subject.publisher
            yield Case(told, frozenset({by}), heard)


def _streams() -> Iterator[Case]:
    for stream in STREAMS:
        reads = frozenset(READS.get(stream.name, ()))
        follows = reads if stream.name in {"EVENTS", "LOGS"} else NOBODY
        for verb in ("CREATE", "UPDATE"):
            yield Case(f"$JS.API.STREAM.{verb}.{stream.name}", frozenset({stream.declarer}))
        for verb in ("INFO", "MSG.GET"):
            yield Case(f"$JS.API.STREAM.{verb}.{stream.name}", reads)
        for verb in ("DELETE", "PURGE", "MSG.DELETE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN"):
            yield Case(f"$JS.API.STREAM.{verb}.{stream.name}")
        yield Case(f"$JS.API.CONSUMER.CREATE.{stream.name}", follows)
        for verb in ("DELETE", "MSG.NEXT"):
            made = frozenset({"scheduler"}) if (verb, stream.name) == ("DELETE", "RUNS") else NOBODY
            yield Case(f"$JS.API.CONSUMER.{verb}.{stream.name}.x", follows | made)
        yield Case(f"$JS.API.CONSUMER.CREATE.{stream.name}.x")
        yield Case(f"$JS.API.DIRECT.GET.{stream.name}")
        for node in NODES:
            own = frozenset({f"agent-{node}"}) if stream.name == "KV_heartbeats" else NOBODY
            yield Case(f"$JS.API.DIRECT.GET.{stream.name}.$KV.heartbeats.{node}", own)
    for subject in ("INFO", "STREAM.LIST", "STREAM.NAMES", "ACCOUNT.PURGE.x", "META.LEADER.STEPDOWN"):
        yield Case(f"$JS.API.{subject}")


def _consumer(consumer: Consumer) -> Iterator[Case]:
    """A consumer is made with its own filter, pulled from and acknowledged by whom it is for, and by nobody else."""
    to = frozenset({consumer.durable if consumer.service == "agent" else consumer.service})
    maker, made = frozenset({consumer.maker}), consumer.maker != consumer.service
    name = f"{consumer.stream}.{consumer.durable}"
    yield Case(f"$JS.API.CONSUMER.CREATE.{name}.{consumer.filter}", maker)
    yield Case(f"$JS.API.CONSUMER.CREATE.{name}.{consumer.filter}.more", NOBODY)
    yield Case(f"$JS.API.CONSUMER.CREATE.{name}.other.x", NOBODY)
    yield Case(f"$JS.API.CONSUMER.DURABLE.CREATE.{name}", NOBODY)
    yield Case(f"$JS.API.CONSUMER.INFO.{name}", to | maker if made else NOBODY)
    yield Case(f"$JS.API.CONSUMER.DELETE.{name}", maker if made else NOBODY)
    yield Case(f"$JS.API.CONSUMER.MSG.NEXT.{name}", to)
    yield Case(f"$JS.ACK.{name}.1.2.3.4.5", to)
    yield Case(f"dead.{name}", to)


CASES = tuple({case.subject: case for case in cases()}.values())


class User:
    """A connection of one user, which notes what it was denied."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.denied: set[tuple[str, str]] = set()

    async def note(self, error: Exception) -> None:
        found = _DENIED.search(str(error))
        assert found, error
        self.denied.add((found[1].lower(), found[2]))

    async def flush(self) -> None:
        """Return when the server has read all that was sent; the client's own ping may overtake what is buffered."""
        await self.client._flush_pending(force_flush=True)
        await self.client.flush()

    async def tried(self, kind: str, tried: list[str]) -> set[str]:
        """Return which of these subjects the server denies."""
        for subject in tried:
            if kind == "publish":
                await self.client.publish(subject, b"{}")
            else:
                await self.client.subscribe(subject, cb=_ignore)
        await self.flush()  # denials come before its answer
        denied = {subject for what, subject in self.denied if what == kind}
        return {subject for subject in tried if subject.lower() in denied}  # the client tells it in small letters


async def _ignore(_: object) -> None:
    """Nothing is to come here."""


class Site:
    """A nats-server with the users of a folder of credentials."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "secrets"
        self.users = generate(self.folder, NODES)
        self.server = NatsServer(folder / "nats", settings=f'include "../secrets/{USERS}"')

    @asynccontextmanager
    async def user(self, name: str) -> AsyncIterator[User]:
        """Give a connection of this user."""
        user = User(Client())
        await user.client.connect(
            self.server.url,
            user=name,
            password=(self.folder / password_file(name)).read_text().strip(),
            inbox_prefix=f"_INBOX_{name}",
            error_cb=user.note,
            allow_reconnect=False,
        )
        try:
            yield user
        finally:
            await user.client.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running nats-server that lets in the users of `gurney credentials` and nobody else."""
    made = Site(tmp_path_factory.mktemp("site"))
    made.server.start()
    yield made
    made.server.stop()


def test_the_cases_hold_every_subject_of_the_tables() -> None:
    """The trials below leave out no operation, no subject and no consumer."""
    tried = {case.subject for case in CASES}
    assert {operation.subject for operation in OPERATIONS} <= tried
    assert len(CASES) > len(OPERATIONS) + len(SUBJECTS) + len(CONSUMERS)


@pytest.mark.parametrize("name", EVERYBODY)
async def test_a_user_publishes_its_own_subjects_only(site: Site, name: str) -> None:
    """Of every subject of the tables the server lets through exactly those that are this user's to say."""
    subjects = [
        case.subject for case in CASES if not {"*", ">"} & set(case.subject.split(".")) or "CREATE" in case.subject
    ]
    async with site.user(name) as user:
        denied = await user.tried("publish", subjects)
    assert denied == {case.subject for case in CASES if case.subject in subjects and name not in case.publish}


@pytest.mark.parametrize("name", EVERYBODY)
async def test_a_user_subscribes_to_its_own_subjects_only(site: Site, name: str) -> None:
    """Of every subject of the tables the server gives exactly those that are this user's to hear."""
    async with site.user(name) as user:
        denied = await user.tried("subscription", [case.subject for case in CASES])
    assert denied == {case.subject for case in CASES if name not in case.subscribe}


async def test_nobody_else_comes_in(site: Site) -> None:
    """Without a user, or with a wrong password, the server lets nobody in."""
    for user, password in ((None, None), ("job", "wrong"), ("operator", "x")):
        secret = SecretStr(password) if password else None
        settings = Settings(nats_url=site.server.url, nats_user=user, nats_password=secret)
        with pytest.raises(Invalid, match=f"refuses the user {user}: are nats_user and nats_password right"):
            async with Connection(settings, "test"):
                pass


async def test_who_follows_a_stream_cannot_take_a_consumer_over(site: Site) -> None:
    """The edge makes consumers that the server names: it can neither make nor change the scheduler's."""
    async with site.user("job") as job, site.user("scheduler") as scheduler, site.user("edge") as edge:
        config = next(stream for stream in STREAMS if stream.name == "EVENTS").config(Settings())
        await job.client.jetstream().add_stream(config)
        wanted = ConsumerConfig(
            name="scheduler",
            durable_name="scheduler",
            filter_subject="job.requested.*",
            ack_policy=AckPolicy.EXPLICIT,
        )
        made = await scheduler.client.jetstream().add_consumer("EVENTS", wanted)
        name, durable = {"name": "scheduler"}, {"durable_name": "scheduler"}
        for taken in (name, durable, name | durable):
            request = {"stream_name": "EVENTS", "config": {**taken, "ack_policy": "none", "deliver_policy": "all"}}
            answer = await edge.client.request("$JS.API.CONSUMER.CREATE.EVENTS", json.dumps(request).encode())
            told = json.loads(answer.data)
            assert "error" in told or told["name"] != "scheduler", told
        again = await scheduler.client.jetstream().add_consumer("EVENTS", wanted)
        assert (again.created, again.config) == (made.created, made.config)


async def test_an_agent_gets_its_own_commands_only(site: Site) -> None:
    """A node's consumer gives its agent the commands of that node; pulling from another's is denied."""
    async with site.user("scheduler") as scheduler, site.user("agent-n1") as agent:
        config = next(stream for stream in STREAMS if stream.name == "RUNS").config(Settings())
        js = scheduler.client.jetstream()
        await js.add_stream(config)
        for node in NODES:
            runs = agent_runs(node)
            wanted = ConsumerConfig(
                name=runs.durable, durable_name=runs.durable, filter_subject=runs.filter, ack_policy=AckPolicy.EXPLICIT
            )
            await js.add_consumer("RUNS", wanted)
            await js.publish(table.RUN_START.of(node_id=node, run_id=f"run-on-{node}"), b"{}")
        heard: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = agent.client.new_inbox()
        await agent.client.subscribe(inbox, cb=heard.put)
        for node in NODES:
            await agent.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.RUNS.agent-{node}", b'{"batch": 8}', inbox)
        message = await asyncio.wait_for(heard.get(), 5)
        assert message.subject == "run.n1.start.run-on-n1"
        await message.ack()
        await agent.flush()
        assert heard.empty()
        assert agent.denied == {("publish", "$js.api.consumer.msg.next.runs.agent-n2")}
