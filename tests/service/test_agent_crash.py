"""The agent killed by SIGKILL at each step: its runs are started once, reported, and leave nothing behind."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from gurney.settings import Settings
from gurney.subjects import (
    PAYLOAD_BEGIN,
    PAYLOAD_COMMIT,
    PAYLOAD_FILES,
    PAYLOAD_SIGN,
    SCHEDULER_CONFIRM,
    SCHEDULER_ENDED,
    Operation,
)
from gurney.testing.nats import NatsServer
from tests.service.agent_house import AgentProcess, FakePayload, FakeScheduler, House, a_host, neighbours

Agents = Callable[[], Awaitable[AgentProcess]]

pytestmark = pytest.mark.needs("nats")

SCRIPT = 'cp "$IN/a" "$OUT/b"; echo "$GURNEY_RUN_ID"'


@pytest.fixture
def settings(nats_server: NatsServer, tmp_path: Path) -> Settings:
    """Settings of one host whose questions give up soon."""
    return a_host(nats_server.url, tmp_path, transfer_patience=10, request_timeout=0.5)


@pytest.fixture
async def agents(settings: Settings) -> AsyncIterator[Agents]:
    """Starts agents over the same folder; one that is still there in the end is killed."""
    started: list[AgentProcess] = []

    async def start() -> AgentProcess:
        started.append(AgentProcess(settings))
        await started[-1].start()
        return started[-1]

    yield start
    for agent in started:
        await agent.kill()


def asked_by(house: House, operation: Operation) -> FakeScheduler | FakePayload:  # type: ignore[type-arg]
    """Return who answers an operation."""
    return house.scheduler if operation.service == "scheduler" else house.payload


async def check(house: House, run_id: str) -> None:
    """See that a run was started once, ended well, brought its output and its log home, and left nothing."""
    outcome = await house.scheduler.outcome(run_id)
    assert outcome.ending == "succeeded", outcome
    assert outcome.output
    assert house.payload.content(run_id, "b") == b"input"
    assert house.payload.content(run_id, "1.log") == f"{run_id}\n".encode()
    assert outcome.log_tail == (run_id,)
    assert house.counted().count(run_id) == 1


@pytest.mark.parametrize("answered", [False, True], ids=["asked", "answered"])
@pytest.mark.parametrize(
    "operation",
    [SCHEDULER_CONFIRM, PAYLOAD_FILES, PAYLOAD_SIGN, PAYLOAD_BEGIN, PAYLOAD_COMMIT, SCHEDULER_ENDED],
    ids=lambda operation: operation.name,
)
async def test_a_kill_at_a_question_loses_nothing(
    settings: Settings,
    agents: Agents,
    operation: Operation,  # type: ignore[type-arg]
    answered: bool,  # noqa: FBT001
) -> None:
    """An agent killed while a question is open, worked on or not, is followed by one that brings the run to its end."""
    async with neighbours(settings) as house:
        await house.payload.add("a", b"input")
        gate = asked_by(house, operation).gate(operation, answered=answered)
        first = await agents()
        start = await house.start(house.run(SCRIPT))
        await asyncio.wait_for(gate.reached.wait(), 20)
        await first.kill()
        gate.open()
        await agents()
        await check(house, start.run_id)
        await house.is_clean()


async def test_a_kill_while_a_run_goes_on_loses_nothing(settings: Settings, agents: Agents) -> None:
    """An agent killed under a live run is followed by one that adopts the run and waits for its end."""
    async with neighbours(settings) as house:
        await house.payload.add("a", b"input")
        first = await agents()
        go = settings.data / "go"
        start = await house.start(house.run(f"until [ -e {go} ]; do sleep 0.02; done; {SCRIPT}"))
        await house.scheduler.until(lambda: [r for r in house.scheduler.reports if r.phase == "running"])
        await first.kill()
        await agents()
        await house.scheduler.until(lambda: start.run_id in house.scheduler.heartbeats[-1].runs)
        await asyncio.to_thread(go.touch)
        await check(house, start.run_id)
        await house.is_clean()


@pytest.mark.slow
async def test_kills_at_random_moments_lose_nothing(settings: Settings, agents: Agents) -> None:
    """However often the agent is killed under many runs, each run is started once and ends with all that it wrote."""
    chance = random.Random(1)
    async with neighbours(settings) as house:
        await house.payload.add("a", b"input")
        starts = []
        for _ in range(20):
            agent = await agents()
            starts += [await house.start(house.run(f"sleep {chance.random() / 5}; {SCRIPT}")) for _ in range(3)]
            await asyncio.sleep(chance.uniform(0.0, 0.5))  # the moment of the kill is what the test varies
            await agent.kill()
        await agents()
        for start in starts:  # as the scheduler does with starts that nobody answered
            if start.run_id not in house.scheduler.ends:
                await house.start(start)
        for start in starts:
            await check(house, start.run_id)
        await house.is_clean()
