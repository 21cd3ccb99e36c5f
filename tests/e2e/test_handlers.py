"""Job handlers: who is told of what, how it is signed, and what happens when nobody listens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from standardwebhooks import Webhook

from tests.e2e import work
from tests.e2e.api import Api, Json


@dataclass
class Listener:
    """A job handler on loopback: keeps what it was sent, and answers with the next of its statuses."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self, request: web.Request) -> web.Response:
        self.requests.append((dict(request.headers), await request.read()))
        self.came.set()
        return web.Response(status=self.statuses.pop(0) if self.statuses else 204)

    async def told(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        """Wait until so many requests have come."""
        async with asyncio.timeout(work.PATIENCE_S):
            while len(self.requests) < count:
                self.came.clear()
                await self.came.wait()
        return self.requests

    async def read(self, secret: str, count: int = 1) -> list[Json]:
        """Return the bodies, each held against its signature."""
        return [Webhook(secret).verify(body, headers) for headers, body in await self.told(count)]


@asynccontextmanager
async def listening(*statuses: int) -> AsyncIterator[Listener]:
    """Run a job handler."""
    listener = Listener(statuses=list(statuses))
    app = web.Application()
    app.router.add_post("/hook", listener.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        listener.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield listener
    finally:
        await runner.cleanup()


async def handler(api: Api, listener: Listener, **options: object) -> Json:
    return dict((await api.post("/v1/handlers", {"url": listener.url, **options})).must(201).json)


async def delivered(api: Api, made: Json, state: str = "delivered", count: int = 1) -> list[Json]:
    """Return the deliveries to a handler once so many are in a state."""
    async with asyncio.timeout(work.PATIENCE_S):
        while True:
            found = await api.all(f"/v1/handlers/{made['id']}/deliveries?limit=1")
            if sum(each["state"] == state for each in found) >= count:
                return found
            await asyncio.sleep(0.02)


@pytest.mark.req("MAS-40")
async def test_told_at_the_end(api: Api) -> None:
    """A handler is told how a job ended, signed, with ids, times, counts and links, and no text of the application."""
    async with listening() as listener:
        made = await handler(api, listener)
        job = await work.shell(api, 'echo SECRET; echo 1 > "$HOLOSCAN_OUTPUT_PATH/f"; exit 7', name="a name")
        (body,) = await listener.read(made["secret"])
        assert body["type"] == "job.failed"
        data = body["data"]
        assert (data["id"], data["state"], data["reason"]) == (job["id"], "failed", "exit_nonzero")
        assert (data["map"]["id"], data["payload"], data["results"]) == (
            job["map"]["id"],
            job["payload"],
            job["results"],
        )
        for time in ("created_at", "started_at", "stopped_at"):
            assert data[time] == job[time]
        (await api.get(data["links"]["results"])).must(200)
        assert "SECRET" not in listener.requests[0][1].decode()
        (delivery,) = await delivered(api, made)
        assert listener.requests[0][0]["webhook-id"] == delivery["event"]
        assert [attempt["status"] for attempt in delivery["attempts"]] == [204]


@pytest.mark.req("MAS-43")
async def test_several_handlers(api: Api) -> None:
    """Several handlers are registered, listed, told each of the same job, and no more once they are removed."""
    async with listening() as one, listening() as two:
        first, second = await handler(api, one), await handler(api, two)
        assert {each["id"] for each in await api.all("/v1/handlers?limit=1")} == {first["id"], second["id"]}
        assert first["secret"] != second["secret"]
        assert (await api.get(f"/v1/handlers/{first['id']}")).must(200).json["secret"] is None
        job = await work.shell(api, "true")
        for listener, made in ((one, first), (two, second)):
            assert [body["data"]["id"] for body in await listener.read(made["secret"])] == [job["id"]]
        (await api.delete(f"/v1/handlers/{first['id']}")).must(204)
        (await api.get(f"/v1/handlers/{first['id']}", case="deleted")).must(404)
        job = await work.shell(api, "true")
        assert (await two.read(second["secret"], 2))[1]["data"]["id"] == job["id"]
        assert len(one.requests) == 1


async def test_filters(api: Api) -> None:
    """A handler is told only of the events, the MAP and the labels that it asks for."""
    async with listening() as listener:
        noop = await work.register(api, "noop", name="noop")
        made = await handler(api, listener, events=["job.succeeded"], map="noop", labels={"study": "1"})
        await work.shell(api, "true", labels={"study": "1"})
        await work.ended(api, (await work.submit(api, noop["id"]))["id"])
        job = await work.submit(api, noop["id"], labels={"study": "1", "more": "2"})
        assert [body["data"]["id"] for body in await listener.read(made["secret"])] == [job["id"]]
        assert len(await delivered(api, made)) == 1


async def test_chosen_by_the_job(api: Api) -> None:
    """A job that names its handlers tells exactly these; one that names one that is not there is refused."""
    async with listening() as one, listening() as two:
        first, second = await handler(api, one), await handler(api, two)
        job = await work.shell(api, "true", handlers=[second["id"]])
        assert [body["data"]["id"] for body in await two.read(second["secret"])] == [job["id"]]
        asked = {"map": job["map"]["id"], "payload": job["payload"], "handlers": ["hdl_nothing"]}
        assert (await api.post("/v1/jobs", asked, case="unknown handler")).must(422).fields == {"handlers"}
        await work.shell(api, "true", handlers=[])
        assert await api.all(f"/v1/handlers/{first['id']}/deliveries") == []
        assert len(two.requests) == 1


async def test_delivered_again(api: Api) -> None:
    """A target that fails is told again, with the same id and body; each attempt is recorded with its status."""
    async with listening(500) as listener:
        made = await handler(api, listener)
        await work.shell(api, "true")
        first, second = await listener.read(made["secret"], 2)
        assert first == second
        assert len({headers["webhook-id"] for headers, _ in listener.requests}) == 1
        (delivery,) = await delivered(api, made)
        assert [attempt["status"] for attempt in delivery["attempts"]] == [500, 204]
        assert all(attempt["at"] and attempt["duration_ms"] >= 0 for attempt in delivery["attempts"])


async def test_dead_target_delays_nobody(api: Api) -> None:
    """A target that refuses connections is tried later; another handler is told at once."""
    async with listening() as dead:
        gone = await handler(api, dead)
    async with listening() as alive:
        made = await handler(api, alive)
        job = await work.shell(api, "true")
        assert (await alive.read(made["secret"]))[0]["data"]["id"] == job["id"]
        async with asyncio.timeout(work.PATIENCE_S):
            while not (found := await api.all(f"/v1/handlers/{gone['id']}/deliveries"))[0]["attempts"]:
                await asyncio.sleep(0.02)
        assert found[0]["state"] == "pending"
        assert found[0]["attempts"][0]["error"]
        assert found[0]["next_attempt_at"] is not None


async def test_gone_for_good(api: Api) -> None:
    """A target that answers 410 is not told again: the delivery is kept as failed."""
    async with listening(410) as listener:
        made = await handler(api, listener)
        await work.shell(api, "true")
        (delivery,) = await delivered(api, made, "failed")
        assert [attempt["status"] for attempt in delivery["attempts"]] == [410]
        assert delivery["next_attempt_at"] is None


async def test_trial(api: Api) -> None:
    """A handler can be tried, and what it was sent is signed and listed."""
    async with listening() as listener:
        made = await handler(api, listener)
        tried = (await api.post(f"/v1/handlers/{made['id']}/test")).must(202).json
        (body,) = await listener.read(made["secret"])
        assert body["type"] == "handler.test"
        assert [each["id"] for each in await delivered(api, made)] == [tried["id"]]


async def test_disabled(api: Api) -> None:
    """A disabled handler is not told, and is told again of what happens after it was enabled."""
    async with listening() as listener:
        made = await handler(api, listener)
        path = f"/v1/handlers/{made['id']}"
        assert (await api.patch(path, {"state": "disabled"})).must(200).json["state"] == "disabled"
        await work.shell(api, "true")
        assert (await api.patch(path, {"state": "active"})).must(200).json["state"] == "active"
        job = await work.shell(api, "true")
        assert [body["data"]["id"] for body in await listener.read(made["secret"])] == [job["id"]]


async def test_wrong_key(api: Api) -> None:
    """A delivery does not stand the check against another handler's secret."""
    async with listening() as listener:
        await handler(api, listener)
        other = await handler(api, listener, labels={"none": "of these"})
        await work.shell(api, "true")
        with pytest.raises(Exception, match="matching signature"):
            await listener.read(other["secret"])


async def test_repeated_registration(api: Api) -> None:
    """The same Idempotency-Key registers one handler, and its secret is told once."""
    key = {"Idempotency-Key": "once"}
    asked = {"url": "http://127.0.0.1:9/"}
    first, again = [(await api.post("/v1/handlers", asked, headers=key)).must(201).json for _ in range(2)]
    assert first["id"] == again["id"]
    assert first["secret"].startswith("whsec_")
    assert again["secret"] is None
    (await api.post("/v1/handlers", asked | {"labels": {"a": "b"}}, headers=key)).must(422, "idempotency_key_reused")
