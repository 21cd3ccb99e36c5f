"""Events as server-sent events: complete, in order, for whom they are, resumable; and nothing stays when clients go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError

from gurney import clock
from gurney.model.access import Role
from gurney.model.job import JobState
from gurney.model.map import MapEvent, MapState
from gurney.model.run import NodeEvent, NodeState
from gurney.testing.nats import NatsServer
from services.edge import sse
from services.edge.views import events
from tests.service.edge_house import House, house

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def home(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    async with house(nats_server.url, tmp_path, events_max_messages=50) as built:
        yield built


async def until(holds: Callable[[], Any]) -> None:
    """Wait until something holds that another process does."""
    async with asyncio.timeout(20):
        while not await holds():
            await asyncio.sleep(0.02)


async def test_all_that_happens_from_now_on(home: House) -> None:
    """An administrator sees every event after his request, in order, with type, data and ids of the stream."""
    await home.jobs.tell(home.jobs.add(), "requested")
    job = home.jobs.add(created_by="ann")
    async with home.events("/v1/events") as stream:
        assert stream.response.headers["Content-Type"] == "text/event-stream"
        for event in ("requested", "scheduled", "started"):
            await home.jobs.tell(job, event)
        seen = await stream.take(3)
    assert [event.name for event in seen] == ["job.requested", "job.scheduled", "job.started"]
    assert {event.data["id"] for event in seen} == {job.id}
    epoch, _, first = seen[0].id.partition("-")
    assert [event.id for event in seen] == [f"{epoch}-{int(first) + n}" for n in range(3)]


async def test_each_role_gets_its_own(home: House) -> None:
    """A clinician gets his own jobs, a developer his project's and nodes, neither another project's."""
    clinician, developer = await home.token(Role.CLINICIAN, "ann"), await home.token(Role.DEVELOPER, "dev")
    mine, others = home.jobs.add(created_by="ann"), home.jobs.add(created_by="bob")
    far = home.jobs.add(created_by="ann", project="far")
    async with (
        home.events("/v1/events", token=clinician) as of_ann,
        home.events("/v1/events", token=developer) as of_dev,
    ):
        for job in (far, others, mine):
            await home.jobs.tell(job, "requested")
        now = clock.now()
        await home.jobs.publish("node.joined.n1", NodeEvent(id="n1", state=NodeState.READY, at=now))
        ready = MapEvent(
            id="map_1", project="default", created_by="bob", name=None, urn="urn:oci:x", digest=None,
            state=MapState.READY, reason=None, at=now,
        )  # fmt: skip
        await home.jobs.publish("map.ready.map_1", ready)
        assert [event.data["id"] for event in await of_ann.take(2)] == [mine.id, "map_1"]
        assert [event.data["id"] for event in await of_dev.take(4)] == [others.id, mine.id, "n1", "map_1"]


async def test_only_the_types_that_are_asked_for(home: House) -> None:
    """`types` leaves out the rest; a type that does not exist is 422."""
    job = home.jobs.add()
    async with home.events("/v1/events?types=job.started,map.ready") as stream:
        for event in ("requested", "started", "finalized", "started"):
            await home.jobs.tell(job, event)
        assert [event.name for event in await stream.take(2)] == ["job.started"] * 2
    assert (await home.get("/v1/events?types=job.exploded"))[0] == 422


async def test_a_client_that_comes_again_misses_nothing(home: House) -> None:
    """`Last-Event-ID` brings what happened since, then what happens."""
    job = home.jobs.add()
    async with home.events("/v1/events") as stream:
        await home.jobs.tell(job, "requested")
        (last,) = await stream.take(1)
    await home.jobs.tell(job, "scheduled")
    async with home.events("/v1/events", headers={"Last-Event-ID": last.id}) as stream:
        assert [event.name for event in await stream.take(1)] == ["job.scheduled"]
        await home.jobs.tell(job, "started")
        assert [event.name for event in await stream.take(1)] == ["job.started"]


@pytest.mark.parametrize("last_id", ["1-1", "rubbish"])
async def test_an_id_of_another_stream_is_told_first(home: House, last_id: str) -> None:
    """A foreign id gets `reset`, then the events from now on; the reset's id resumes."""
    job = home.jobs.add()
    await home.jobs.tell(job, "requested")
    async with home.events("/v1/events", headers={"Last-Event-ID": last_id}) as stream:
        await home.jobs.tell(job, "started")
        reset, event = await stream.take(2)
    assert (reset.name, reset.data, event.name) == ("reset", {"reason": "foreign_id"}, "job.started")
    async with home.events("/v1/events", headers={"Last-Event-ID": reset.id}) as stream:
        assert [event.name for event in await stream.take(1)] == ["job.started"]


async def test_an_id_that_is_too_old_is_told_first(home: House) -> None:
    """Where events after the id are gone from the stream, `reset` says so."""
    job = home.jobs.add()
    async with home.events("/v1/events") as stream:
        await home.jobs.tell(job, "requested")
        (first,) = await stream.take(1)
    for _ in range(60):
        await home.jobs.tell(job, "progress")
    async with home.events("/v1/events", headers={"Last-Event-ID": first.id}) as stream:
        await home.jobs.tell(job, "started")
        reset, event = await stream.take(2)
    assert (reset.name, reset.data, event.name) == ("reset", {"reason": "too_old"}, "job.started")


async def test_who_reads_too_slowly_is_told_what_he_missed(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that falls behind what the stream holds gets `reset` in the place of what went."""
    job = home.jobs.add()
    gate, sending = asyncio.Event(), asyncio.Event()
    send = sse.EventStream.send

    async def slow(stream: sse.EventStream, data: bytes) -> None:
        if b"job." in data:
            sending.set()
            await gate.wait()
        await send(stream, data)

    monkeypatch.setattr(sse.EventStream, "send", slow)
    async with home.events("/v1/events") as stream:
        await home.jobs.tell(job, "requested")
        await sending.wait()
        for _ in range(120):
            await home.jobs.tell(job, "progress")
        gate.set()
        seen = await stream.take(40)
    names = [event.name for event in seen]
    assert names.count("reset") == 1
    at = names.index("reset")
    numbers = [int(event.id.partition("-")[2]) for event in seen]
    assert numbers[:at] == list(range(numbers[0], numbers[0] + at))
    assert numbers[at] > numbers[at - 1]
    assert numbers[at + 1] == numbers[at] + 1


async def test_a_job_from_its_first_event_to_its_end(home: House) -> None:
    """A job's stream has its events alone, also those from before, and ends after the last."""
    job, other = home.jobs.add(), home.jobs.add()
    await home.jobs.tell(job, "requested")
    await home.jobs.tell(other, "requested")
    async with home.events(f"/v1/jobs/{job.id}/events") as stream:
        await home.jobs.tell(job, "started")
        assert [event.name for event in await stream.take(2)] == ["job.requested", "job.started"]
        await home.jobs.end(job, JobState.FAILED)
        last = await stream.rest()
    assert [event.name for event in last] == ["job.failed"]
    async with home.events(f"/v1/jobs/{job.id}/events") as stream:
        assert [event.name for event in await stream.rest()] == ["job.requested", "job.started", "job.failed"]
    status, _, _ = await home.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": last[0].id})
    assert status == 204


async def test_an_ended_job_whose_events_are_gone(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stream has no last event any more, one is made of the document, and the stream ends."""
    monkeypatch.setattr(events, "GRACE_S", 0.05)
    job = home.jobs.add(state=JobState.CANCELED, stopped_at=clock.now())
    async with home.events(f"/v1/jobs/{job.id}/events") as stream:
        (last,) = await stream.rest()
    assert (last.name, last.data["id"], last.data["state"]) == ("job.canceled", job.id, "canceled")


async def test_a_job_whose_last_event_is_lost_ends_all_the_same(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ends without its event reaching the stream is found out by looking at it."""
    monkeypatch.setattr(events, "GRACE_S", 0.05)
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    job = home.jobs.add()
    async with home.events(f"/v1/jobs/{job.id}/events") as stream:
        home.jobs.jobs[job.id] = job.but(state=JobState.SUCCEEDED)
        assert [event.name for event in await stream.rest()] == ["job.succeeded"]


async def test_unknown_jobs_have_no_events(home: House) -> None:
    """404 for a job that is not there, or not for this caller."""
    job = home.jobs.add(created_by="bob")
    token = await home.token(Role.CLINICIAN, "ann")
    assert (await home.get(f"/v1/jobs/{job.id}/events", token=token))[0] == 404
    assert (await home.get("/v1/jobs/nonsense/events"))[0] == 404


async def test_clients_that_go_leave_nothing(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """When clients went away, their consumers are gone from the stream."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    before = await home.consumers("EVENTS")
    async with home.events("/v1/events"), home.events("/v1/events") as stream:
        assert await home.consumers("EVENTS") == before + 2
        stream.response.close()

    async def gone() -> bool:
        return await home.consumers("EVENTS") == before

    await until(gone)


async def test_silence_is_filled_with_comments(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing happens, comments keep the connection alive."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    async with home.events("/v1/events") as stream:
        lines = [await stream.response.content.readline() for _ in range(6)]
    assert lines.count(b":\n") == 2


async def test_a_token_that_is_deleted_hears_no_more(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream of a token ends soon after the token."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    secret = await home.token(Role.DEVELOPER, "dev")
    async with home.request("GET", "/v1/whoami", token=secret) as response:
        token = (await response.json())["id"]
    async with home.events("/v1/events", token=secret) as stream:
        async with home.request("DELETE", f"/v1/tokens/{token}") as response:
            assert response.status == 204
        with pytest.raises(ClientError):
            await stream.rest()


async def test_many_clients_hear_the_same(home: House) -> None:
    """A hundred clients at once each get every event."""
    job = home.jobs.add()

    async def listen() -> list[str]:
        async with home.events("/v1/events") as stream:
            arrived.release()
            return [event.name for event in await stream.take(20)]

    arrived = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(listen()) for _ in range(100)]
        for _ in tasks:
            await arrived.acquire()
        for _ in range(20):
            await home.jobs.tell(job, "progress")
    assert all(task.result() == ["job.progress"] * 20 for task in tasks)


async def test_the_server_stops_at_once(nats_server: NatsServer, tmp_path: Path) -> None:
    """Open streams end in order when the server stops, and do not hold it up."""
    async with house(nats_server.url, tmp_path) as home:
        job = home.jobs.add()
        async with (
            home.events("/v1/events") as all_events,
            home.events(f"/v1/jobs/{job.id}/events") as of_job,
            home.events(f"/v1/jobs/{job.id}/logs?follow=true") as log,
            asyncio.timeout(5),
        ):
            assert home.edge.http is not None
            await home.edge.http.__aexit__()
            assert [await each.rest() for each in (all_events, of_job, log)] == [[], [], []]


async def test_without_nats_the_stream_ends(own_nats_server: NatsServer, tmp_path: Path) -> None:
    """When NATS does not answer any more, streams end, and new ones get 503."""
    async with house(own_nats_server.url, tmp_path) as home, home.events("/v1/events") as stream:
        own_nats_server.kill()
        assert await stream.rest() == []
        assert (await home.get("/v1/events"))[0] == 503
        own_nats_server.start()

        async def back() -> bool:
            return (await home.get("/readyz"))[0] == 200

        await until(back)
