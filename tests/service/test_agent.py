"""The agent over a real nats-server, a real store and the process runtime; scheduler and payload service are fakes."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from gurney.errors import Forbidden, StoreUnavailable
from gurney.heartbeats import Heartbeats
from gurney.model.run import Outcome, StartRun
from gurney.service import Service
from gurney.settings import MIB, Settings
from gurney.subjects import PAYLOAD_COMMIT, SCHEDULER_CONFIRM, SCHEDULER_ENDED
from gurney.testing.nats import NatsServer
from services.agent import claim, heartbeat, live_log, log, policy
from services.agent.__main__ import build
from services.agent.journal import Entry, Journal
from services.agent.run import Run
from tests.service.agent_house import SECONDS, House, a_host, neighbours

pytestmark = pytest.mark.needs("nats")


@pytest.fixture
def settings(nats_server: NatsServer, tmp_path: Path) -> Settings:
    """Settings of one host with small patience."""
    return a_host(nats_server.url, tmp_path, stop_grace=0.2, transfer_patience=10, request_timeout=2)


@pytest.fixture
async def house(settings: Settings) -> AsyncIterator[House]:
    """An agent that runs, and its neighbours."""
    async with neighbours(settings) as house:
        await house.agent_starts()
        yield house


async def test_an_agent_that_comes_first_waits_quietly(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody has made the stream of the heartbeats yet, it says nothing of that, and beats once it is there."""
    logger = CapturingLogger()
    for module in (claim, heartbeat):
        monkeypatch.setattr(module, "_log", logger)
    scheduler = Service("scheduler", settings)
    async with build(settings, runtimes=[]), scheduler, asyncio.timeout(SECONDS):
        while await Heartbeats(scheduler.bus).read("n1") is None:
            await asyncio.sleep(0.05)
    assert {call.method_name for call in logger.calls} <= {"debug"}


# --- the plain way ---


async def test_a_run_without_files_asks_three_questions(house: House) -> None:
    """A run with neither input nor output is confirmed, listed and ended, and nothing is left of it."""
    run_id, outcome = await house.finish("true")
    assert outcome.ending == "succeeded"
    assert outcome.exit_code == 0
    assert (outcome.output, outcome.log, outcome.log_tail, outcome.metadata) == (False, None, (), None)
    assert outcome.started_at
    assert outcome.stopped_at
    assert outcome.timings.running is not None
    assert None not in {outcome.timings.pulling, outcome.timings.staging, outcome.timings.collecting}
    assert house.scheduler.asked == ["confirm", "ended"]
    assert house.payload.asked == ["files"]
    assert house.counted() == [run_id]
    await house.is_clean()


async def test_input_and_output_travel(house: House) -> None:
    """A run finds its input under the paths of the payload, and what it writes comes home with its folders."""
    await house.payload.add("a.txt", b"alpha")
    await house.payload.add("deep/er/b.bin", bytes(100_000))
    await house.payload.add("hollow/")
    script = """
        cp -r "$IN"/. "$OUT"/; mkdir "$OUT/empty"; ls -lnR "$IN"
        echo '{"areas": [1.5, 2]}' > "$OUT/metadata.json"; echo done
    """
    run_id, outcome = await house.finish(script)
    assert outcome.ending == "succeeded", outcome
    assert outcome.output
    results = house.payload.results[run_id]
    assert set(results) == {"a.txt", "deep/er/b.bin", "hollow/", "empty/", "metadata.json"}
    assert house.payload.content(run_id, "a.txt") == b"alpha"
    assert results["deep/er/b.bin"].size == 100_000
    assert outcome.metadata == {"areas": [1.5, 2]}
    assert outcome.log_tail[-1] == "done"
    kept = house.payload.content(run_id, "1.log")
    assert outcome.log is not None
    assert (outcome.log.attempt, outcome.log.bytes) == (1, len(kept))
    assert b"-r--r--r--" in kept
    assert b"dr-xr-xr-x" in kept
    assert b"w" not in b"".join(line.split()[0] for line in kept.splitlines() if line[:1] in {b"-", b"d"})
    await house.is_clean()


async def test_an_input_of_many_pages_is_staged_whole(house: House) -> None:
    """An input that takes several pages and batches is there to the last file before the run starts."""
    house.payload.page = 300
    for number in range(700):
        await house.payload.add(f"f/{number:04}", b"%d" % number)
    _, outcome = await house.finish('test $(cat "$IN"/f/* | wc -c) = 1990 && test $(ls "$IN/f" | wc -l) = 700')
    assert outcome.ending == "succeeded", outcome
    assert house.payload.asked.count("files") == 3


async def test_five_thousand_files_come_home(house: House) -> None:
    """A run that writes 5,000 files succeeds, and each of them is stored."""
    run_id, outcome = await house.finish('mkdir "$OUT/d"; cd "$OUT/d"; for i in $(seq 5000); do echo $i > $i; done')
    assert outcome.ending == "succeeded", outcome
    results = house.payload.results[run_id]
    assert len(results) == 5000
    assert house.payload.content(run_id, "d/4321") == b"4321\n"
    await house.is_clean()


async def test_several_runs_go_on_side_by_side(house: House) -> None:
    """Runs that wait for each other all end: none of them holds another up."""
    meet = house.settings.data / "meet"
    meet.mkdir()
    script = f'touch {meet}/$GURNEY_RUN_ID; until [ $(ls {meet} | wc -l) = 4 ]; do sleep 0.02; done; echo > "$OUT/x"'
    starts = [await house.start(house.run(script)) for _ in range(4)]
    outcomes = await asyncio.gather(*map(house.outcome, starts))
    assert [outcome.ending for outcome in outcomes] == ["succeeded"] * 4


# --- ends ---


@pytest.mark.parametrize(
    ("script", "changes", "ending", "reason", "exit_code"),
    [
        ("exit 7", {}, "failed", "exit_nonzero", 7),
        ("", {"command": ("no-such-program",)}, "failed", "exit_nonzero", 127),
        ("", {"command": ("./app.json",)}, "failed", "exit_nonzero", 126),
        ("sleep 60", {"timeout_s": 0.2}, "failed", "timeout", None),
        ("trap '' TERM; while :; do sleep 0.05; done", {"timeout_s": 0.2}, "failed", "timeout", 137),
    ],
)
async def test_ends_have_reasons(  # noqa: PLR0917
    house: House, script: str, changes: dict[str, object], ending: str, reason: str, exit_code: int | None
) -> None:
    """Each way to end that is the application's own has its reason and its exit code."""
    _, outcome = await house.finish(script, **changes)
    assert outcome.reason is not None
    assert (outcome.ending, outcome.reason.code) == (ending, reason)
    assert exit_code in {None, outcome.exit_code}
    await house.is_clean()


@pytest.mark.parametrize(("asked", "ending"), [(0.0, "succeeded"), (None, "failed")])
async def test_a_timeout_of_zero_is_none(settings: Settings, asked: float | None, ending: str) -> None:
    """A job that asks for no timeout has none, whatever the deployment's is, which holds where nothing is said."""
    async with neighbours(settings.model_copy(update={"job_timeout": 0.2})) as house:
        await house.agent_starts()
        _, outcome = await house.finish("sleep 0.6", timeout_s=asked)
    assert outcome.ending == ending


async def test_a_failed_run_keeps_what_it_wrote(house: House) -> None:
    """The output and the log of a run that failed come home all the same."""
    run_id, outcome = await house.finish('echo part > "$OUT/part"; echo oh; exit 3')
    assert (outcome.ending, outcome.exit_code, outcome.output) == ("failed", 3, True)
    assert house.payload.content(run_id, "part") == b"part\n"
    assert outcome.log_tail == ("oh",)


@pytest.mark.parametrize(
    "script",
    [
        'ln -s /etc/passwd "$OUT/x"',
        'ln -s ../input "$OUT/x"',
        'ln -s / "$OUT/x"',
        'ln -s nowhere "$OUT/x"',
        'ln -s . "$OUT/x"',
        'mkfifo "$OUT/x"',
        'cd "$OUT"; python -c \'import socket; socket.socket(socket.AF_UNIX).bind("x")\'',
        'touch "$OUT/$(printf "a\\nb")"',
        'touch "$OUT/$(printf "a\\377b")"',
        pytest.param(
            'mknod "$OUT/x" c 1 3', marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device")
        ),
    ],
)
async def test_output_that_must_not_be_is_rejected(house: House, script: str) -> None:
    """A link that leaves the output, a device, a pipe, a socket or an impossible name fails the run; files stay."""
    run_id, outcome = await house.finish(f'echo kept > "$OUT/kept"\n{script}\n')
    assert outcome.reason is not None
    assert (outcome.ending, outcome.reason.code, outcome.exit_code) == ("failed", "output_rejected", 0), outcome
    assert outcome.output
    assert set(house.payload.results[run_id]) == {"kept"}
    await house.is_clean()


async def test_links_inside_the_output_are_copies(house: House) -> None:
    """Links that stay inside the output are stored as copies of what they lead to."""
    script = 'mkdir "$OUT/d"; echo one > "$OUT/d/f"; ln -s d/f "$OUT/l"; ln -s "$OUT/d" "$OUT/e"'
    run_id, outcome = await house.finish(script)
    assert outcome.ending == "succeeded", outcome
    assert {path: house.payload.content(run_id, path) for path in house.payload.results[run_id]} == {
        "d/f": b"one\n",
        "l": b"one\n",
        "e/f": b"one\n",
    }


async def test_a_long_log_is_kept_by_head_and_tail(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a log past the bound its head and its tail are kept, and a line between them says how much is not."""
    monkeypatch.setattr(log, "WHOLE", 2000)
    run_id, outcome = await house.finish("seq 2000")
    written = "".join(f"{number}\n" for number in range(1, 2001)).encode()
    kept = written[:1000] + log.marker(len(written) - 2000) + written[-1000:]
    assert house.payload.content(run_id, "1.log") == kept
    assert outcome.log is not None
    assert outcome.log.bytes == len(kept)
    assert outcome.log_tail == tuple(map(str, range(1901, 2001)))
    await house.is_clean()


# --- the live log ---


async def test_what_a_run_writes_is_seen_while_it_runs(house: House) -> None:
    """The live log brings each byte once, in order, while the run goes on."""
    await house.follow_log()
    go = house.settings.data / "go"
    os.mkfifo(go)
    start = await house.start(house.run(f"echo grüße; read x < {go}; echo ende"))
    chunks = house.log[start.run_id]
    await house.scheduler.until(lambda: "".join(chunk.text for chunk in chunks) == "grüße\n")
    assert start.run_id not in house.scheduler.ends
    await asyncio.to_thread(go.write_text, "\n")
    await house.outcome(start)
    await house.scheduler.until(lambda: "".join(chunk.text for chunk in chunks) == "grüße\nende\n")
    at = 0
    for chunk in chunks:
        assert chunk.offset == at
        at += chunk.size


async def test_a_flood_of_log_is_not_sent_whole(house: House) -> None:
    """Of a log that grows faster than anybody reads the live log brings a part with its offsets; it is kept whole."""
    await house.follow_log()
    run_id, outcome = await house.finish("head -c 20000000 /dev/zero | tr '\\0' x")
    assert outcome.log is not None
    assert outcome.log.bytes == 20_000_000
    chunks = house.log[run_id]
    await house.scheduler.until(lambda: chunks and chunks[-1].offset + chunks[-1].size == 20_000_000)
    assert sum(chunk.size for chunk in chunks) < 10_000_000
    assert all(chunk.size <= live_log.CHUNK for chunk in chunks)


# --- stops ---


async def test_a_stop_ends_a_live_run(house: House) -> None:
    """A run that is stopped ends as canceled, and what it had written comes home."""
    start = await house.start(house.run('echo part > "$OUT/part"; sleep 60'))
    await house.scheduler.until(lambda: [r for r in house.scheduler.reports if r.phase == "running"])
    await house.stop(start.run_id)
    outcome = await house.outcome(start)
    assert outcome.reason is not None
    assert (outcome.ending, outcome.reason.code) == ("canceled", "canceled")
    await house.is_clean()


async def test_a_defect_ends_a_run_before_it_is_told(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that the agent gives up is over when the scheduler hears of it: the next may begin at once."""
    number = tmp_path / "pid"

    async def breaks(_: Run) -> None:
        while not await asyncio.to_thread(lambda: number.exists() and number.read_text()):
            await asyncio.sleep(0.01)
        raise RuntimeError

    monkeypatch.setattr(Run, "_keep_timings", breaks)
    told = house.scheduler.gate(SCHEDULER_ENDED)
    start = await house.start(house.run(f"echo $$ > {number}; sleep {SECONDS}"))
    await told.reached.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)
    told.open()
    outcome = await house.outcome(start)
    assert outcome.reason is not None
    assert (outcome.ending, outcome.reason.code) == ("lost", "internal")
    await house.is_clean()


async def test_a_stop_before_the_start_prevents_it(house: House) -> None:
    """A stop that comes while the start waits for its confirmation keeps the run from starting."""
    gate = house.scheduler.gate(SCHEDULER_CONFIRM)
    start = await house.start(house.run("true"))
    await gate.reached.wait()
    await house.stop(start.run_id)
    assert (await house.outcome(start)).ending == "canceled"
    gate.open()
    await house.is_clean()
    assert house.counted() == []


async def test_a_stop_that_comes_with_the_confirmation(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop whose note is still being written when the run is confirmed ends the run all the same."""
    gate = house.scheduler.gate(SCHEDULER_CONFIRM)
    keep, canceled, decided = Journal.keep, policy.canceled, asyncio.Event()

    async def keep_late(self: Journal, entry: Entry) -> None:
        gate.open()
        await decided.wait()
        await keep(self, entry)

    def decide(*given: Any) -> Outcome:
        decided.set()
        return canceled(*given)

    monkeypatch.setattr(Journal, "keep", keep_late)
    monkeypatch.setattr(policy, "canceled", decide)
    start = await house.start(house.run("true"))
    await gate.reached.wait()
    await house.stop(start.run_id)
    assert (await house.outcome(start)).ending == "canceled"
    await house.is_clean()
    assert house.counted() == []


async def test_stops_at_any_moment(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever stops come, and however long notes take to be written, each run ends and leaves nothing."""
    chance, keep = random.Random(1), Journal.keep

    async def keep_late(self: Journal, entry: Entry) -> None:
        await asyncio.sleep(chance.uniform(0, 0.05))
        await keep(self, entry)

    monkeypatch.setattr(Journal, "keep", keep_late)

    async def stopped(start: StartRun) -> str:
        await house.start(start)
        await asyncio.sleep(chance.uniform(0, 0.05))
        await house.stop(start.run_id)
        return (await house.outcome(start)).ending

    runs = [house.run("sleep 60") for _ in range(30)]
    assert set(await asyncio.gather(*map(stopped, runs))) == {"canceled"}
    await house.is_clean()


async def test_a_stop_of_an_unknown_run_changes_nothing(house: House) -> None:
    """A stop for a run that is not here is taken in silence, and later runs go on."""
    await house.stop("job_00000000000000000000000000-1")
    _, outcome = await house.finish("true")
    assert outcome.ending == "succeeded"


# --- confirmation and fencing ---


async def test_a_refused_start_leaves_nothing(house: House) -> None:
    """A start that the scheduler does not confirm is dropped without a word."""
    start = house.run("true")
    house.scheduler.refused.add(start.run_id)
    await house.start(start)
    await house.scheduler.until(lambda: True)
    _, outcome = await house.finish("true")
    assert outcome.ending == "succeeded"
    await house.is_clean()
    assert start.run_id not in {*house.counted(), *house.scheduler.ends}


async def test_a_start_waits_for_a_scheduler_that_is_away(house: House) -> None:
    """A scheduler that cannot answer is asked again until it does."""
    house.scheduler.faults["confirm"] += [StoreUnavailable(), StoreUnavailable()]
    house.scheduler.faults["ended"] += [StoreUnavailable(), StoreUnavailable()]
    run_id, outcome = await house.finish("true")
    assert outcome.ending == "succeeded"
    assert house.scheduler.asked == ["confirm"] * 3 + ["ended"] * 3
    assert house.counted() == [run_id]


async def test_a_start_that_comes_twice_starts_once(house: House) -> None:
    """A start that is sent again while its run lives, or after it was forgotten, starts nothing."""
    go = house.settings.data / "go"
    os.mkfifo(go)
    start = await house.start(house.run(f"read x < {go}"))
    await house.scheduler.until(lambda: [r for r in house.scheduler.reports if r.phase == "running"])
    await house.start(start)
    await asyncio.to_thread(go.write_text, "\n")
    await house.outcome(start)
    await house.is_clean()
    await house.start(start)
    await house.finish("true")
    await house.is_clean()
    assert house.counted().count(start.run_id) == 1
    assert len(house.scheduler.ends[start.run_id]) == 1


async def test_a_former_scheduler_is_not_obeyed(house: House) -> None:
    """Commands of an older leadership are refused, also after a restart of the agent."""
    _, outcome = await house.finish("true", epoch=5)
    assert outcome.ending == "succeeded"
    await house.agent_ends()
    await house.agent_starts()
    old = await house.start(house.run("true", epoch=4))
    newer, _ = await house.finish("true", epoch=6)
    await house.is_clean()
    assert old.run_id not in house.counted()
    assert newer in house.counted()
    assert old.run_id not in house.scheduler.ends


async def test_a_start_that_does_not_fit_is_refused(house: House) -> None:
    """A start whose resources are not free beside the live runs is not taken on."""
    big = house.request("sleep 60").resources.but(cpu=5.0)
    first = await house.start(house.run("sleep 60", resources=big))
    await house.scheduler.until(lambda: [r for r in house.scheduler.reports if r.phase == "running"])
    second = await house.start(house.run("true", resources=big))
    small, _ = await house.finish("true")
    assert house.counted() == [first.run_id, small]
    await house.stop(first.run_id)
    await house.outcome(first)
    await house.is_clean()
    assert second.run_id not in house.scheduler.ends


# --- infrastructure that fails ---


async def test_faults_of_the_payload_service_are_waited_out(house: House) -> None:
    """Listing, signing, beginning and committing are repeated until they work."""
    await house.payload.add("a", b"1")
    for name in ("files", "sign", "begin", "commit"):
        house.payload.faults[name] += [StoreUnavailable(), StoreUnavailable()]
    run_id, outcome = await house.finish('cp "$IN/a" "$OUT/b"')
    assert outcome.ending == "succeeded", outcome
    assert house.payload.content(run_id, "b") == b"1"
    assert house.counted() == [run_id]


async def test_a_commit_whose_answer_is_lost_is_repeated(house: House) -> None:
    """A commit that was made and not answered is said again, and the results are what they were."""
    gate = house.payload.gate(PAYLOAD_COMMIT, answered=True)
    start = await house.start(house.run('echo 1 > "$OUT/a"'))
    await gate.reached.wait()
    await house.payload.until(lambda: house.payload.asked.count("commit") == 2)
    gate.open()
    assert (await house.outcome(start)).ending == "succeeded"
    assert house.payload.content(start.run_id, "a") == b"1\n"


async def test_refused_urls_are_asked_for_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that is no longer good costs a new one, not the run."""
    await house.payload.add("a", b"1")
    for module, name in (("staging", "fetch_to"), ("upload", "put_file")):
        where = f"services.agent.{module}.{name}"
        original = __import__(f"services.agent.{module}", fromlist=[name]).__dict__[name]

        refusals = iter([True] * 2)

        async def move(*args: object, original: object = original, refusals: Iterator[bool] = refusals) -> object:
            if next(refusals, False):
                raise Forbidden("expired")
            return await original(*args)  # type: ignore[operator]

        monkeypatch.setattr(where, move)
    run_id, outcome = await house.finish('cp "$IN/a" "$OUT/b"')
    assert outcome.ending == "succeeded", outcome
    assert house.payload.content(run_id, "b") == b"1"


@pytest.mark.parametrize(("name", "reason"), [("files", "input_unavailable"), ("begin", "output_unavailable")])
async def test_patience_ends(settings: Settings, name: str, reason: str) -> None:
    """When input or output stay unavailable the attempt is lost, with the reason, and leaves nothing behind."""
    async with neighbours(settings.model_copy(update={"transfer_patience": 0.3})) as house:
        await house.agent_starts()
        house.payload.faults[name] += [StoreUnavailable()] * 1000
        _, outcome = await house.finish('echo 1 > "$OUT/a"')
        assert outcome.reason is not None
        assert (outcome.ending, outcome.reason.code) == ("lost", reason)
        await house.is_clean()


async def test_an_image_that_is_gone_loses_the_attempt(settings: Settings) -> None:
    """A MAP that cannot be had on this node any more loses the attempt as `image_unavailable`."""
    async with neighbours(settings.model_copy(update={"transfer_patience": 0.2})) as house:
        await house.agent_starts()
        _, outcome = await house.finish("true", digest=f"sha256:{'0' * 64}")
        assert outcome.reason is not None
        assert (outcome.ending, outcome.reason.code) == ("lost", "image_unavailable")
        _, outcome = await house.finish("true", urn="urn:oci:nothing")
        assert outcome.reason is not None
        assert (outcome.ending, outcome.reason.code) == ("lost", "image_unavailable")
        await house.is_clean()
    assert house.counted() == []


# --- inspections ---


async def test_maps_are_read(house: House) -> None:
    """An inspection reports digest and manifests of a MAP, or why it cannot be read."""
    done = await house.inspect("urn:gurney:dir:app")
    assert (done.phase, done.digest) == ("done", house.digest)
    assert done.manifests == {"app.json": '{"command": "sh"}', "pkg.json": "{}"}
    missing = await house.inspect("urn:gurney:dir:nothing")
    assert missing.reason is not None
    assert (missing.phase, missing.reason.code) == ("failed", "not_found")
    foreign = await house.inspect("urn:oci:alpine")
    assert foreign.reason is not None
    assert (foreign.phase, foreign.reason.code) == ("failed", "no_runtime")


# --- heartbeats ---


async def test_a_heartbeat_names_what_there_is(house: House) -> None:
    """The node shows its capacity, its kinds and its runs; after a restart of the agent with a new incarnation."""
    await house.scheduler.until(lambda: house.scheduler.heartbeats)
    first = house.scheduler.heartbeats[-1]
    assert (first.node, first.runs, first.kinds) == ("n1", (), ("urn:gurney:dir:",))
    assert (first.capacity.cpu, first.capacity.memory) == (8, 4096 * MIB)
    start = await house.start(house.run("sleep 60"))
    await house.scheduler.until(lambda: [r for r in house.scheduler.reports if r.phase == "running"])
    await house.agent_ends()
    house.scheduler.heartbeats.clear()
    await house.agent_starts()
    await house.scheduler.until(lambda: house.scheduler.heartbeats)
    again = house.scheduler.heartbeats[0]
    assert again.runs == (start.run_id,)
    assert again.incarnation != first.incarnation
    await house.stop(start.run_id)
    assert (await house.outcome(start)).ending == "canceled"
    await house.is_clean()


# --- restarts ---


async def test_a_run_that_ended_without_an_agent_is_collected(house: House) -> None:
    """A run outlives its agent; the next one finds its end, carries its output home and reports it."""
    go = house.settings.data / "go"
    os.mkfifo(go)
    start = await house.start(house.run(f'read x < {go}; echo 1 > "$OUT/a"; echo said; exit 4'))
    await house.scheduler.until(lambda: [r for r in house.scheduler.reports if r.phase == "running"])
    await house.agent_ends()
    await asyncio.to_thread(go.write_text, "\n")
    await house.agent_starts()
    outcome = await house.outcome(start)
    assert (outcome.ending, outcome.exit_code, outcome.log_tail) == ("failed", 4, ("said",))
    assert house.payload.content(start.run_id, "a") == b"1\n"
    assert house.counted() == [start.run_id]
    await house.is_clean()


async def test_a_stop_survives_a_restart(house: House) -> None:
    """A stop that was taken in before the start holds for the next agent, too."""
    gate = house.scheduler.gate(SCHEDULER_CONFIRM)
    start = await house.start(house.run("true"))
    await gate.reached.wait()
    house.scheduler.faults["ended"] += [StoreUnavailable()] * 3
    await house.stop(start.run_id)
    await house.scheduler.until(lambda: "ended" in house.scheduler.asked)
    await house.agent_ends()
    gate.open()
    await house.agent_starts()
    assert (await house.outcome(start)).ending == "canceled"
    assert house.counted() == []
    await house.is_clean()


async def test_a_stop_in_the_journal_prevents_the_start(house: House) -> None:
    """An agent that was killed between a stop and what follows from it is followed by one that starts nothing."""
    await house.agent_ends()
    start = house.run("true")
    journal = Journal(house.settings.data / "agent" / "journal")
    await asyncio.to_thread(journal.write, Entry(start=start, stopped=True))
    await house.agent_starts()
    assert (await house.outcome(start)).ending == "canceled"
    assert house.counted() == []
    assert "confirm" not in house.scheduler.asked
    await house.is_clean()


async def test_what_the_journal_does_not_know_is_ended(house: House) -> None:
    """A run that the runtime has and the journal lost is stopped and forgotten at the next start; torn entries go."""
    start = await house.start(house.run("sleep 60"))
    await house.scheduler.until(lambda: [r for r in house.scheduler.reports if r.phase == "running"])
    await house.agent_ends()
    journal = house.settings.data / "agent" / "journal"
    (journal / f"{start.run_id}.json").write_text('{"start": {"run_')
    (journal / "job_x.tmp").write_text("")
    await house.agent_starts()
    await house.is_clean()
    assert house.scheduler.ends == {}
