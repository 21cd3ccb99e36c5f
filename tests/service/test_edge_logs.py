"""Logs through the edge: kept ones as text, live ones as they are written, each byte once and in order."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gurney.model.access import Role
from gurney.model.job import JobState
from gurney.testing.nats import NatsServer
from services.edge import log_text
from services.edge.views import logs
from tests.service.edge_house import Event, House, house

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def home(nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(logs, "READ_S", 0.3)
    async with house(nats_server.url, tmp_path) as built:
        yield built


def text_of(events: list[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.name == "log")


async def test_a_finished_attempt_has_its_kept_log(home: House) -> None:
    """The log is plain UTF-8 text, whole, by attempt; an attempt that wrote nothing has an empty one."""
    job = home.jobs.add(state=JobState.SUCCEEDED, attempt=3)
    text = "Größe\n" * 300_000
    await home.payloads.keep_log(job.id, 3, text.encode())
    await home.payloads.keep_log(job.id, 1, b"first")
    status, body, headers = await home.get(f"/v1/jobs/{job.id}/logs")
    assert (status, body.decode() == text) == (200, True)
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert (await home.get(f"/v1/jobs/{job.id}/logs?attempt=1"))[1] == b"first"
    assert (await home.get(f"/v1/jobs/{job.id}/logs?attempt=2"))[:2] == (200, b"")
    for attempt, status in ((4, 404), (0, 422), ("x", 422)):
        assert (await home.get(f"/v1/jobs/{job.id}/logs?attempt={attempt}"))[0] == status
    token = await home.token(Role.CLINICIAN, "somebody")
    assert (await home.get(f"/v1/jobs/{job.id}/logs", token=token))[0] == 404


async def test_a_running_attempt_has_what_it_wrote_so_far(home: House) -> None:
    """Without `follow` the answer is what the live tail holds, with gaps told, and ends there."""
    job = home.jobs.add()
    assert (await home.get(f"/v1/jobs/{job.id}/logs"))[:2] == (200, b"")
    await home.jobs.write(job, 0, "one\n")
    await home.jobs.write(job, 4, "two\n")
    await home.jobs.write(job, 10, "four\n")
    _, body, _ = await home.get(f"/v1/jobs/{job.id}/logs")
    assert body == b"one\ntwo\n\n[gurney: 2 bytes of the log are not here]\nfour\n"


async def test_a_log_is_followed_to_its_end(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before comes first, then what is written; what the live tail missed comes from the kept log."""
    monkeypatch.setattr(logs, "LOOK_S", 1000.0)  # the end is heard, not looked for
    job = home.jobs.add()
    await home.jobs.write(job, 0, "a\n")
    async with home.events(f"/v1/jobs/{job.id}/logs?follow=true") as stream:
        seen = await stream.take(1)
        await home.jobs.write(job, 2, "ü\n")
        seen += await stream.take(1)
        await home.payloads.keep_log(job.id, 1, "a\nü\nthe rest\n".encode())
        await home.jobs.end(job)
        rest = await stream.rest()
    assert [event.data for event in seen] == [
        {"attempt": 1, "offset": 0, "text": "a\n"},
        {"attempt": 1, "offset": 2, "text": "ü\n"},
    ]
    assert [(event.name, event.data) for event in rest] == [
        ("log", {"attempt": 1, "offset": 5, "text": "the rest\n"}),
        ("end", {"state": "succeeded", "attempt": 1}),
    ]


async def test_a_gap_in_the_live_log_is_told(home: House) -> None:
    """Bytes that the live tail lost are told as a gap with their number; what comes twice is shown once."""
    job = home.jobs.add()
    async with home.events(f"/v1/jobs/{job.id}/logs?follow=true") as stream:
        for offset, text in ((0, "0123"), (0, "0123"), (2, "2345"), (10, "xy")):
            await home.jobs.write(job, offset, text)
        seen = await stream.take(4)
    assert [(event.name, event.data.get("text") or event.data["bytes"]) for event in seen] == [
        ("log", "0123"),
        ("log", "45"),
        ("gap", 4),
        ("log", "xy"),
    ]
    assert seen[2].data == {"attempt": 1, "offset": 6, "bytes": 4}


async def test_following_goes_on_with_the_next_attempt(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retried job's log goes on with the new attempt; one attempt alone ends with it."""
    monkeypatch.setattr(logs, "LOOK_S", 0.05)
    job = home.jobs.add()
    async with (
        home.events(f"/v1/jobs/{job.id}/logs?follow=true") as stream,
        home.events(f"/v1/jobs/{job.id}/logs?follow=true&attempt=1") as first,
    ):
        await home.jobs.write(job, 0, "try\n")
        seen = await stream.take(1)
        await home.payloads.keep_log(job.id, 1, b"try\nlost\n")
        home.jobs.jobs[job.id] = job.but(attempt=2)
        seen += await stream.take(1)
        assert [event.name for event in await first.rest()] == ["log", "log", "end"]
        await home.jobs.write(job, 0, "again\n", attempt=2)
        seen += await stream.take(1)
        await home.jobs.end(job)
        seen += await stream.rest()
    assert [(event.name, event.data["attempt"], event.data.get("text")) for event in seen] == [
        ("log", 1, "try\n"),
        ("log", 1, "lost\n"),
        ("log", 2, "again\n"),
        ("end", 2, None),
    ]


async def test_a_lost_attempt_without_kept_log_has_what_the_tail_holds(home: House) -> None:
    """Where no log was kept, the live tail is all there is, followed or not."""
    job = home.jobs.add(attempt=2)
    await home.jobs.write(job, 0, "so far")
    assert (await home.get(f"/v1/jobs/{job.id}/logs?attempt=1"))[1] == b"so far"
    async with home.events(f"/v1/jobs/{job.id}/logs?follow=true&attempt=1") as stream:
        assert text_of(await stream.rest()) == "so far"


async def test_who_comes_again_goes_on_where_he_was(home: House) -> None:
    """The id of a log event resumes behind it; after the end a browser is told not to come again."""
    job = home.jobs.add(state=JobState.FAILED)
    await home.payloads.keep_log(job.id, 1, b"0123456789")
    async with home.events(f"/v1/jobs/{job.id}/logs?follow=true", headers={"Last-Event-ID": "1-4"}) as stream:
        seen = await stream.rest()
    assert text_of(seen) == "456789"
    headers = {"Last-Event-ID": seen[-1].id}
    assert (await home.get(f"/v1/jobs/{job.id}/logs?follow=true", headers=headers))[0] == 204


async def test_a_large_log_followed_late_is_whole(home: House) -> None:
    """A log of many pieces arrives whole and in order, whatever it is made of."""
    job = home.jobs.add(state=JobState.SUCCEEDED)
    content = ("äöü€🙂" * 50_000).encode() + b"\xff\n"
    await home.payloads.keep_log(job.id, 1, content)
    async with home.events(f"/v1/jobs/{job.id}/logs?follow=true") as stream:
        assert text_of(await stream.rest()) == content.decode(errors="replace")


async def test_a_shortened_log_goes_on_behind_what_is_left_out(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who saw the live log up to some offset gets the tail of a shortened log from just there."""
    monkeypatch.setattr(log_text, "HEAD", 10)
    monkeypatch.setattr(logs, "HEAD", 10)
    monkeypatch.setattr(logs, "WHOLE", 20)
    job = home.jobs.add(state=JobState.SUCCEEDED)
    kept = b"0123456789" + b"\n[gurney: 100 bytes of the log are left out here]\n" + b"abcdefghij"
    await home.payloads.keep_log(job.id, 1, kept)
    for seen, rest in ((5, kept[5:].decode()), (110, "abcdefghij"), (114, "efghij"), (120, "")):
        headers = {"Last-Event-ID": f"1-{seen}"}
        async with home.events(f"/v1/jobs/{job.id}/logs?follow=true", headers=headers) as stream:
            assert text_of(await stream.rest()) == rest


async def test_many_follow_one_log(home: House) -> None:
    """Fifty clients that follow one log each see all of it."""
    job = home.jobs.add()

    async def follow() -> str:
        async with home.events(f"/v1/jobs/{job.id}/logs?follow=true") as stream:
            arrived.release()
            return text_of(await stream.rest())

    arrived = asyncio.Semaphore(0)
    text = "".join(f"line {n}\n" for n in range(200))
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[Any]] = [group.create_task(follow()) for _ in range(50)]
        for _ in tasks:
            await arrived.acquire()
        for at in range(0, len(text), 100):
            await home.jobs.write(job, at, text[at : at + 100])
        await home.payloads.keep_log(job.id, 1, text.encode())
        await home.jobs.end(job)
    assert {task.result() for task in tasks} == {text}
