"""Server-sent events: of one job until it ends, and of everything, with resumption."""

import asyncio

from gurney.client.http import ServerEvent
from tests.e2e import work
from tests.e2e.api import Api
from tests.e2e.conftest import ClientOf

LIFE = ["job.requested", "job.scheduled", "job.started", "job.succeeded"]


async def events_of(api: Api, job: str, last: str | None = None) -> list[ServerEvent]:
    """Return a job's events until the server ends the stream."""
    async with asyncio.timeout(work.PATIENCE_S), api.events(f"/v1/jobs/{job}/events", last) as events:
        return [event async for event in events]


async def test_events_of_a_job(api: Api) -> None:
    """A job's events come in order while they happen, and the stream ends with the job."""
    job = await work.begin(api, "sleep 0.3")
    found = await events_of(api, job["id"])
    types = [event.type for event in found if event.type in LIFE]
    assert types == LIFE
    assert {event.data["id"] for event in found} == {job["id"]}
    assert all(event.id for event in found)
    assert [event.type for event in await events_of(api, job["id"]) if event.type in LIFE] == LIFE


async def test_events_of_a_job_resume(api: Api) -> None:
    """Who comes again with the last id that he saw gets what came after it, and 204 when that is nothing."""
    job = await work.shell(api, "true")
    found = await events_of(api, job["id"])
    after = await events_of(api, job["id"], found[1].id)
    assert [event.id for event in after] == [event.id for event in found[2:]]
    last = {"Last-Event-ID": found[-1].id}
    (await api.get(f"/v1/jobs/{job['id']}/events", headers=last)).must(204)


async def test_told_no_sooner_than_kept(api: Api) -> None:
    """Whoever is told of an end by an event reads that end in the document."""
    made = await work.register(api, "noop")
    async with api.events("/v1/events?types=job.succeeded") as events:
        job = await work.submit(api, made["id"])
        async with asyncio.timeout(work.PATIENCE_S):
            async for event in events:
                found = (await api.get(f"/v1/jobs/{event.data['id']}")).must(200).json
                assert found["state"] == "succeeded"
                if event.data["id"] == job["id"]:
                    break


async def test_all_events(api: Api) -> None:
    """What happens to MAPs, payloads and jobs is told in order, each with an id that a client can resume from."""
    async with api.events("/v1/events") as events:
        made = await work.register(api, "noop")
        job = await work.submit(api, made["id"])
        seen: list[ServerEvent] = []
        async with asyncio.timeout(work.PATIENCE_S):
            async for event in events:
                seen.append(event)
                if event.type == "job.succeeded":
                    break
    types = [event.type for event in seen]
    assert types.index("map.registered") < types.index("map.ready") < types.index("job.requested")
    assert "payload.created" in types
    async with asyncio.timeout(work.PATIENCE_S), api.events("/v1/events", seen[1].id) as events:
        again = [await anext(events) for _ in seen[2:]]
    assert [event.id for event in again] == [event.id for event in seen[2:]]
    assert {event.data["id"] for event in seen} == {made["id"], job["payload"], job["id"]}


async def test_foreign_id(api: Api) -> None:
    """An id of another server, or one that is too old, is told by a `reset` before anything else."""
    async with asyncio.timeout(work.PATIENCE_S), api.events("/v1/events", "12345-1") as events:
        first = await anext(events)
    assert first.type == "reset"


async def test_only_what_the_token_may_see(api: Api, client_of: ClientOf) -> None:
    """Another project's events are not told, and a clinician hears of what his subject made alone."""
    other = await client_of("developer", "dev", project="quiet")
    mine, theirs = await client_of("clinician", "mine"), await client_of("clinician", "theirs")
    async with other.events("/v1/events") as far, mine.events("/v1/events") as near:
        await work.payload(api)
        await work.payload(theirs)
        expected = [await work.payload(other), await work.payload(mine)]
        async with asyncio.timeout(work.PATIENCE_S):
            assert [(await anext(events)).data["id"] for events in (far, near)] == expected
