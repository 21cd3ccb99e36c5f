"""Second tries, work side by side, questions asked early, tasks that nobody waits for."""

import asyncio
from itertools import islice

import pytest

from gurney.errors import Forbidden, StoreUnavailable
from gurney.tasks import spread
from services.agent.patience import Crew, Early, GaveUp, delays, persist


def test_delays_grow_to_a_bound() -> None:
    """Seconds between tries double, differ by chance, and stay bounded for ever."""
    found = list(islice(delays(), 2000))
    assert found[0] <= 0.05
    assert all(1.0 < each <= 5.0 for each in found[20:])
    assert len(set(found[20:])) > 100


async def test_work_is_repeated_until_it_succeeds() -> None:
    """What fails for a time succeeds later."""
    faults = [StoreUnavailable(), OSError(5, "broken"), TimeoutError()]

    async def work() -> str:
        if faults:
            raise faults.pop()
        return "done"

    assert await persist(work, 10) == "done"


@pytest.mark.parametrize(("fault", "patience_s"), [(Forbidden("no"), 10), (StoreUnavailable("no"), 0)])
async def test_work_in_vain_is_given_up(fault: Exception, patience_s: float) -> None:
    """What cannot succeed, or not in time, is given up with its last fault."""

    async def work() -> None:
        raise fault

    with pytest.raises(GaveUp, match="no"):
        await persist(work, patience_s)


async def test_work_goes_on_side_by_side() -> None:
    """At most so many items are in work at once, and all are worked on."""
    at_once = most = 0
    done: list[int] = []

    async def work(item: int) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        done.append(item)
        at_once -= 1

    await spread(work, range(20), 3)
    assert sorted(done) == list(range(20))
    assert most == 3
    await spread(work, [], 3)


async def test_the_first_fault_ends_the_rest() -> None:
    """When one item fails its fault comes out, nothing runs on, and the caller is not taken for cancelled."""
    running = 0

    async def work(item: int) -> None:
        nonlocal running
        running += 1
        try:
            if item == 3:
                raise Forbidden("three")
            await asyncio.sleep(30 if item else 0)
        finally:
            running -= 1

    with pytest.raises(Forbidden, match="three"):
        await spread(work, range(10), 4)
    assert running == 0
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_cancelled_spread_leaves_nothing_running() -> None:
    """Who is cancelled while items are in work waits until they have ended."""
    begun = asyncio.Event()
    ended: list[int] = []

    async def work(item: int) -> None:
        begun.set()
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0)
            ended.append(item)

    task = asyncio.create_task(spread(work, range(10), 4))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == [0, 1, 2, 3]


async def test_an_early_answer_is_used_once() -> None:
    """What was asked for early is answered by that; asked for again, it is asked anew."""
    asked: list[int] = []

    async def ask() -> int:
        asked.append(len(asked))
        return asked[-1]

    early = Early(ask)
    assert [await early(), await early()] == [0, 1]


async def test_what_nobody_calls_for_is_broken_off() -> None:
    """An early question that is not needed ends in silence, whether it had failed or was still open."""

    async def fail() -> None:
        raise Forbidden

    async def hang() -> None:
        await asyncio.sleep(30)

    failed, hung = Early(fail), Early(hang)
    await asyncio.sleep(0)
    failed.discard()
    hung.discard()
    hung.discard()
    await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_a_crew_is_dismissed() -> None:
    """Tasks get their grace, and none is left; one that failed harms no other."""
    done: list[str] = []

    async def fail() -> None:
        raise ValueError

    async def work(seconds: float) -> None:
        await asyncio.sleep(seconds)
        done.append("worked")

    crew = Crew()
    crew.start(fail(), "fails")
    crew.start(work(0.0), "works")
    crew.start(work(30.0), "hangs")
    await crew.dismiss(0.1)
    assert done == ["worked"]
    assert len(asyncio.all_tasks()) == 1
