"""Requests to hosted models: what runs together, whose turn it is, and that each is settled once."""

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.modelhost.batching import (
    Answer,
    Arrived,
    Batcher,
    Broke,
    Closed,
    Effect,
    Ended,
    Event,
    Fail,
    Left,
    Limits,
    Opened,
    Refuse,
    Run,
    Tick,
)

MODELS = st.sampled_from(["a", "b", "c"])
SECONDS = st.floats(0, 0.1)


class Batching(RuleBasedStateMachine):
    """Whatever happens in whatever order, as one who watches it from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = Batcher()
        self.now = 0.0
        self.limits: dict[str, Limits] = {}
        self.open: dict[int, Arrived] = {}
        self.gone: set[int] = set()
        self.settled: set[int] = set()
        self.run: Run | None = None
        self.begun: Counter[int] = Counter()
        self.count = 0

    def on(self, event: Event) -> list[Effect]:
        effects = self.batcher.on(event, self.now)
        for effect in effects:
            if isinstance(effect, Run):
                self.begins(effect)
            else:
                assert effect.id not in self.settled, "answered twice"
                assert effect.id not in self.gone, "nobody waits for it"
                del self.open[effect.id]
                self.settled.add(effect.id)
        return effects

    def begins(self, run: Run) -> None:
        assert self.run is None, "one run at a time"
        requests = [self.open[each] for each in run.ids]  # none that is settled or has left
        limits = self.limits[run.model]
        assert requests
        assert {each.model for each in requests} == {run.model}
        assert len({each.like for each in requests}) == 1
        assert sum(each.rows for each in requests) <= limits.rows
        assert limits.joins or len(requests) == 1
        assert all(each.until > self.now for each in requests)
        assert [each.id for each in requests] == sorted(run.ids), "the oldest first"
        self.begun.update(run.ids)
        assert all(self.begun[each] <= 2 for each in run.ids), "who is run a second time is run alone"
        assert len(run.ids) == 1 or all(self.begun[each] == 1 for each in run.ids)
        self.run = run

    @rule(model=MODELS, rows=st.integers(1, 8), waiting=st.integers(0, 30), joins=st.booleans())
    def opens(self, model: str, rows: int, waiting: int, joins: bool) -> None:  # noqa: FBT001
        self.limits[model] = Limits(rows=rows, waiting=waiting, joins=joins)
        assert not self.on(Opened(model, self.limits[model]))

    @rule(model=MODELS)
    def closes(self, model: str) -> None:
        self.limits.pop(model, None)
        running = set(self.run.ids if self.run else ())
        waited = {each.id for each in self.open.values() if each.model == model} - running
        assert set(self.on(Closed(model))) == {Refuse(each, "closed") for each in waited}

    @rule(model=MODELS, rows=st.integers(1, 10), like=st.integers(0, 1), patience=st.sampled_from([0.05, 1.0, 1e9]))
    def arrives(self, model: str, rows: int, like: int, patience: float) -> None:
        self.count += 1
        request = Arrived(self.count, model, rows, like, self.now + patience)
        self.open[request.id] = request
        for effect in self.on(request):
            assert isinstance(effect, Refuse)
            limits = self.limits.get(model)
            assert (effect.why == "unknown") == (limits is None)
            assert limits is None or (effect.why == "too_large") == (rows > limits.rows)

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        request = data.draw(st.integers(1, self.count))
        assert not self.on(Left(request))
        if self.open.pop(request, None):
            self.gone.add(request)

    @rule()
    def ticks(self) -> None:
        self.on(Tick())
        assert self.run or not self.open, "nobody waits for others to come"

    @rule(seconds=SECONDS)
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.run)
    @rule(seconds=SECONDS, breaks=st.booleans())
    def ends(self, seconds: float, breaks: bool) -> None:  # noqa: FBT001
        assert self.run
        ids, self.run = self.run.ids, None
        waited = [each for each in ids if each in self.open]
        effects = self.on(Broke(seconds) if breaks else Ended(seconds))
        if not breaks:
            assert [each.id for each in effects if isinstance(each, Answer)] == waited
        elif len(waited) == 1:
            assert Fail(waited[0]) in effects
        assert self.run or not self.open, "the next run begins at once"

    @invariant()
    def nobody_is_lost(self) -> None:
        running = set(self.run.ids) - self.gone if self.run else set()
        assert self.batcher.waiting == len(self.open) - len(running)

    def teardown(self) -> None:
        """Run what is left: each is settled."""
        self.on(Tick())
        while self.run:
            self.run = None
            self.on(Ended(0.001))
        assert not self.open
        assert not self.batcher.waiting


TestBatching = Batching.TestCase

WIDE = Limits(rows=4, waiting=10_000)


def opened(*models: str) -> Batcher:
    batcher = Batcher()
    for model in models:
        batcher.on(Opened(model, WIDE), 0)
    return batcher


def arrive(batcher: Batcher, model: str, ids: Iterable[int]) -> None:
    for each in ids:
        assert not batcher.on(Arrived(each, model, 1), 0)


def test_a_lone_request_waits_for_nobody() -> None:
    """A request that comes alone runs in the tick in which it came."""
    batcher = opened("a")
    arrive(batcher, "a", [1])
    assert batcher.on(Tick(), 0) == [Run("a", (1,))]
    assert batcher.on(Ended(1), 0) == [Answer(1)]


def test_what_waits_runs_together_as_far_as_it_fits() -> None:
    """What came while a run went on is the next run, up to the limit of rows, and the rest the one after."""
    batcher = opened("a")
    arrive(batcher, "a", [1, 2, 3])
    assert batcher.on(Tick(), 0) == [Run("a", (1, 2, 3))]
    arrive(batcher, "a", range(4, 10))
    assert batcher.on(Tick(), 0) == []
    assert batcher.on(Ended(1), 0) == [Answer(1), Answer(2), Answer(3), Run("a", (4, 5, 6, 7))]
    assert batcher.on(Ended(1), 0)[-1] == Run("a", (8, 9))


def test_only_what_is_alike_runs_together() -> None:
    """Requests of other shapes keep their place, and run when theirs is the oldest."""
    batcher = opened("a")
    for number, like in enumerate("xyxzyx", start=1):
        batcher.on(Arrived(number, "a", 1, like), 0)
    assert batcher.on(Tick(), 0) == [Run("a", (1, 3, 6))]
    assert batcher.on(Ended(1), 0)[-1] == Run("a", (2, 5))
    assert batcher.on(Ended(1), 0)[-1] == Run("a", (4,))


def test_a_model_that_joins_nothing_runs_one_at_a_time() -> None:
    """Where rows are not of the first dimension each request is a run."""
    batcher = Batcher()
    batcher.on(Opened("a", Limits(rows=4, waiting=9, joins=False)), 0)
    arrive(batcher, "a", [1, 2])
    assert batcher.on(Tick(), 0) == [Run("a", (1,))]
    assert batcher.on(Ended(1), 0) == [Answer(1), Run("a", (2,))]


def test_so_many_rows_wait_and_no_more() -> None:
    """What comes when as many rows wait as may is refused, until some of them run or leave."""
    batcher = Batcher()
    batcher.on(Opened("a", Limits(rows=4, waiting=5)), 0)
    assert not batcher.on(Arrived(1, "a", 3), 0)
    assert batcher.on(Arrived(2, "a", 3), 0) == [Refuse(2, "full")]
    assert not batcher.on(Arrived(3, "a", 2), 0)
    batcher.on(Left(3), 0)
    assert not batcher.on(Arrived(4, "a", 2), 0)
    assert batcher.on(Tick(), 0) == [Run("a", (1,))]
    assert not batcher.on(Arrived(5, "a", 3), 0)


def test_a_guilty_request_fails_alone() -> None:
    """Of a run that broke each request runs again by itself, before what came later, and only the guilty one fails."""
    batcher = opened("a")
    arrive(batcher, "a", [1, 2])
    batcher.on(Tick(), 0)
    arrive(batcher, "a", [3, 4])
    assert batcher.on(Broke(1), 0) == [Run("a", (1,))]
    assert batcher.on(Broke(1), 0) == [Fail(1), Run("a", (2,))]
    assert batcher.on(Ended(1), 0) == [Answer(2), Run("a", (3, 4))]


def test_an_end_without_a_run_is_a_defect() -> None:
    """What cannot have happened raises."""
    with pytest.raises(ValueError, match="nothing runs"):
        opened("a").on(Ended(1), 0)


@given(
    st.dictionaries(MODELS, st.lists(st.floats(0.001, 1), min_size=20, max_size=20), min_size=2),
)
def test_models_that_always_wait_get_the_same_time(lengths: dict[str, list[float]]) -> None:
    """Between two models that always have something waiting, the time given differs by one run of each at most."""
    batcher, used, runs = opened(*lengths), dict.fromkeys(lengths, 0.0), dict.fromkeys(lengths, 0)
    for number, model in enumerate(lengths):
        arrive(batcher, model, range(number * 1000, number * 1000 + 100))
    (run,) = batcher.on(Tick(), 0)
    longest = {model: max(each) for model, each in lengths.items()}
    for _ in range(15):
        assert isinstance(run, Run)
        took = lengths[run.model][runs[run.model]]
        runs[run.model] += 1
        used[run.model] += took
        for one in lengths:
            assert all(used[one] - used[other] <= longest[one] + 1e-9 for other in lengths)
        run = batcher.on(Ended(took), 0)[-1]


@given(st.integers(1, 30), SECONDS)
def test_who_comes_new_waits_for_no_debts_of_others(before: int, seconds: float) -> None:
    """A model that had nothing to do for long gets no more than its share, and waits for one run of each other."""
    batcher = opened("a", "b", "c")
    for number, model in enumerate(["a", "b"]):
        arrive(batcher, model, range(number * 1000, number * 1000 + 500))
    batcher.on(Tick(), 0)
    for _ in range(before):
        batcher.on(Ended(seconds), 0)
    arrive(batcher, "c", range(9000, 9500))
    turns = []
    for _ in range(9):
        run = batcher.on(Ended(seconds), 0)[-1]
        assert isinstance(run, Run)
        turns.append(run.model)
    assert "c" in turns[:3]
    assert all(turns.count(model) <= 4 for model in "abc")
