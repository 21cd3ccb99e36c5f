"""Every message of a job's life, recorded on the wire and held against the table of subjects."""

import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg

from gurney import subjects as table
from gurney.model.common import Empty
from gurney.subjects import AGENT, NOTICES, OPERATIONS, SUBJECTS, Notice, Operation, Subject
from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.test_handlers import handler, listening

#: NATS's own subjects: inboxes, JetStream's and the services protocol's.
OF_NATS = ("_INBOX", "$JS.", "$SRV.", "_R_.")
#: Attributes of CloudEvents 1.0 that every message of a stream carries.
ATTRIBUTES = {"ce-id", "ce-type", "ce-source", "ce-time", "ce-subject"}

#: What a job that runs to its end, one that is canceled, and what is before them must touch.
TOUCHED: set[Operation | Subject] = {  # type: ignore[type-arg]
    table.MAP_REGISTER,
    table.MAP_GET,
    table.SCHEDULER_INSPECT,
    table.RUN_INSPECT,
    table.INSPECT_REPORT,
    table.MAP_EVENT,
    table.PAYLOAD_CREATE,
    table.PAYLOAD_BEGIN,
    table.PAYLOAD_COMMIT,
    table.PAYLOAD_EVENT,
    table.HANDLER_CREATE,
    table.JOB_CREATE,
    table.PAYLOAD_CLAIM,
    table.SCHEDULER_ADMIT,
    table.JOB_EVENT,
    table.JOB_GET,
    table.RUN_START,
    table.SCHEDULER_CONFIRM,
    table.LIFECYCLE,
    table.PAYLOAD_FILES,
    table.PAYLOAD_SIGN,
    table.RUN_REPORT,
    table.LOG_CHUNK,
    table.SCHEDULER_ENDED,
    table.PAYLOAD_END,
    table.JOB_CANCEL,
    table.CANCEL,
    table.RUN_STOP,
    table.PAYLOAD_LOG,
}


@dataclass(frozen=True)
class Row:
    """A row of the table, and what matches it."""

    entry: Operation | Subject | Notice  # type: ignore[type-arg]
    pattern: re.Pattern[str]

    def decode(self, data: bytes) -> None:
        """Hold a message against the row's type."""
        match self.entry:
            case Operation():
                self.entry.request.decode(data)
            case Subject():
                self.entry.payload.decode(data)
            case Notice():
                Empty.decode(data)


def rows() -> list[Row]:
    found = []
    for operation in OPERATIONS:
        by_node = r"(\.[a-z0-9-]+)?" if AGENT in operation.askers else ""
        found.append(Row(operation, re.compile(re.escape(operation.subject) + by_node)))
    found += [Row(notice, re.compile(re.escape(notice.subject))) for notice in NOTICES]
    for subject in SUBJECTS:
        parts = re.split(r"\{\w+\}", subject.template)
        found.append(Row(subject, re.compile(r"[^.]+".join(map(re.escape, parts)))))
    return found


@asynccontextmanager
async def recording(data: Path) -> AsyncIterator[list[Msg]]:
    """Record every message that crosses the nats-server of a data folder."""
    config = (data / "nats" / "nats-server.conf").read_text()
    port, user, password = (
        _first(pattern, config) for pattern in (r':(\d+)"', r'user: "([^"]+)"', r'password: "([^"]+)"')
    )
    client = await nats.connect(f"nats://127.0.0.1:{port}", user=user, password=password)
    seen: list[Msg] = []

    async def note(message: Msg) -> None:
        seen.append(message)

    try:
        await client.subscribe(">", cb=note)
        await client.flush()
        yield seen
        await client.flush()
    finally:
        await client.close()


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match
    return match[1]


@pytest.fixture
async def recorded(server: EmbeddedProcess, api: Api) -> tuple[list[Msg], str]:
    """All messages of a job that succeeds and one that is canceled; and the id of the first."""
    async with recording(server.data) as seen, listening() as listener:
        made = await handler(api, listener)
        job = await work.shell(api, 'echo hello; sleep 0.1; echo 1 > "$HOLOSCAN_OUTPUT_PATH/f"')
        await work.log(api, job)
        other = await work.begin(api, "sleep 30")
        (await api.post(f"/v1/jobs/{other['id']}/cancel")).must(202)
        await work.ended(api, other["id"])
        await listener.read(made["secret"], 2)
        await work.nothing_left(server, other["id"])
    return [message for message in seen if _is_published(message)], job["id"]


def _is_published(message: Msg) -> bool:
    """Tell whether somebody of ours sent this: what JetStream hands to a consumer crosses the wire once more."""
    return not message.subject.startswith(OF_NATS) and not message.reply.startswith("$JS.ACK.")


@pytest.mark.embedded
async def test_every_subject_is_in_the_table(recorded: tuple[list[Msg], str]) -> None:
    """Nothing is sent on a subject that is not in the table, and every message is of the type that the table says."""
    messages, _ = recorded
    seen: defaultdict[Operation | Subject | Notice, int] = defaultdict(int)  # type: ignore[type-arg]
    known = rows()
    for message in messages:
        found = [row for row in known if row.pattern.fullmatch(message.subject)]
        assert len(found) == 1, message.subject
        found[0].decode(message.data)
        seen[found[0].entry] += 1
        assert len(message.data) <= 512 * 1024
    missed = {row.entry for row in known} - seen.keys()
    assert not missed & TOUCHED, f"not seen: {missed & TOUCHED}"


@pytest.mark.embedded
async def test_events_are_cloud_events(recorded: tuple[list[Msg], str]) -> None:
    """Every message of EVENTS carries the attributes of CloudEvents, the trace and an id of its own."""
    messages, job = recorded
    events = [message for message in messages if re.match(r"(job|map|payload)\.", message.subject)]
    assert len(events) > 8
    for message in events:
        assert message.headers is not None
        assert message.headers.keys() >= ATTRIBUTES
        assert message.headers["ce-type"] == ".".join(message.subject.split(".")[:2])
    ids = [message.headers["ce-id"] for message in events if message.headers and message.subject.endswith(job)]
    assert len(ids) == len(set(ids))


@pytest.mark.embedded
async def test_every_hop_in_its_order(recorded: tuple[list[Msg], str]) -> None:
    """A job goes over the wire from hop to hop, and the world is told of an end after it was written."""
    messages, job = recorded
    subjects = [_named(message.subject) for message in messages if _is_of(message, job)]
    wanted = [
        "svc.job.create",
        "svc.payload.claim",
        "svc.scheduler.admit",
        f"job.requested.{job}",
        f"run.NODE.start.{job}-1",
        "svc.scheduler.confirm",
        f"lifecycle.started.{job}",
        f"job.started.{job}",
        "svc.scheduler.ended",
        f"lifecycle.succeeded.{job}",
        "svc.payload.end",
        f"job.succeeded.{job}",
    ]
    found = [subject for subject in dict.fromkeys(subjects) if subject in wanted]
    order = {subject: number for number, subject in enumerate(found)}
    assert set(order) == set(wanted)
    for before, after in pairwise(wanted[3:]):
        if "job.started" not in before:  # a short run may end before the world knows that it began
            assert order[before] < order[after], found


def _named(subject: str) -> str:
    """Return a subject without the name of this node."""
    asked = re.sub(r"^(svc\.\w+\.\w+)\.[a-z0-9-]+$", r"\1", subject)
    return re.sub(r"\.[a-z0-9-]+\.(?=(start|running)\.)", ".NODE.", asked)


def _is_of(message: Msg, job: str) -> bool:
    return job in message.subject or job.encode() in message.data or message.subject == "svc.job.create"
