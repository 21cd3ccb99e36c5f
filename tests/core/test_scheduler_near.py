"""Nodes that hold what a run needs of its MAP: taken before others at the same price, and at no other."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.model.job import PlacementRequest
from gurney.model.map import StaticContent
from gurney.model.run import Node
from services.scheduler import holders
from services.scheduler.holders import Holders, needs
from services.scheduler.order import alone, entry_of
from services.scheduler.overview import Overview
from services.scheduler.policy import evaluate
from tests.core.scheduler_builders import NOW, RULES, SILENT_AFTER, a_gpu, a_node, a_request, a_snapshot

IMAGE, CONTENT = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
HAS_IMAGE, HAS_CONTENT = ("a" * 12,), ("b" * 12,)


def of_image(number: int = 1, *, content: bool = False, **more: object) -> PlacementRequest:
    request = a_request(number, **more)  # type: ignore[arg-type]
    brought = StaticContent(payload="pay_1", digest=CONTENT, path="/models") if content else None
    return request.but(request=request.request.but(digest=IMAGE, content=brought))


def taken(nodes: Sequence[Node], request: PlacementRequest | None = None) -> str:
    """Return the node that a job gets, what is kept and what is found anew being the same."""
    waiting = alone(entry_of(request or of_image(), NOW))
    overview = Overview(SILENT_AFTER)
    (kept,) = evaluate(overview.snapshot({node.id: node for node in nodes}, NOW), waiting, RULES).decisions
    (fresh,) = evaluate(a_snapshot(nodes), waiting, RULES).decisions
    assert kept == fresh
    return kept.node


def test_of_equal_nodes_the_one_with_the_image_is_taken() -> None:
    """Without it, the id would decide."""
    assert taken([a_node("n1"), a_node("n2")]) == "n1"
    assert taken([a_node("n1"), a_node("n2", images=HAS_IMAGE)]) == "n2"
    assert taken([a_node("n1"), a_node("n2", images=HAS_IMAGE), a_node("n3", images=HAS_IMAGE)]) == "n2"
    assert taken([a_node("n1"), a_node("n2", images=("c" * 12,))]) == "n1"


def test_what_a_map_brings_along_counts_like_its_image() -> None:
    """Who holds both is taken before who holds one of them."""
    nodes = [a_node("n1"), a_node("n2", images=HAS_CONTENT), a_node("n3", images=HAS_IMAGE + HAS_CONTENT)]
    assert taken(nodes[:2], of_image(content=True)) == "n2"
    assert taken(nodes, of_image(content=True)) == "n3"
    assert taken(nodes[:2]) == "n1"


@pytest.mark.parametrize(
    ("better", "request_"),
    [
        (a_node("n1", cpu=3), of_image()),
        (a_node("n1", gpus=[a_gpu("1")]), of_image(gpus=1)),
        (a_node("n1"), of_image(avoid=("n2",))),
    ],
    ids=["fuller", "fits better", "not avoided"],
)
def test_a_better_price_goes_before(better: Node, request_: PlacementRequest) -> None:
    """An image draws no job to a node that is the worse one, nor to one that it avoids."""
    gpus = [a_gpu("2"), a_gpu("3")] if better.gpus else []
    assert taken([better, a_node("n2", images=HAS_IMAGE, gpus=gpus)], request_) == "n1"


def test_jobs_without_gpus_stay_off_nodes_with_gpus() -> None:
    """Also where these hold the image."""
    assert taken([a_node("n1", cpu=64), a_node("n2", gpus=[a_gpu("1")], images=HAS_IMAGE)]) == "n1"


def test_it_is_followed_as_it_changes() -> None:
    """An image that comes, one that goes, and a node that takes the row of one that has left."""
    overview, waiting = Overview(SILENT_AFTER), alone(entry_of(of_image(), NOW))

    def node(*nodes: Node) -> str:
        plan = evaluate(overview.snapshot({each.id: each for each in nodes}, NOW), waiting, RULES)
        return plan.decisions[0].node

    assert node(a_node("n1"), a_node("n2")) == "n1"
    assert node(a_node("n1"), a_node("n2", images=HAS_IMAGE)) == "n2"
    assert node(a_node("n1", images=HAS_IMAGE), a_node("n2", images=HAS_IMAGE)) == "n1"
    assert node(a_node("n1"), a_node("n2", images=HAS_IMAGE)) == "n2"
    assert node(a_node("n1")) == "n1"
    assert node(a_node("n1"), a_node("n3")) == "n1"
    assert node(*[a_node(f"n{number}") for number in range(1, 9)], a_node("n9", images=HAS_IMAGE)) == "n9"
    assert len(overview.snapshot({}, NOW).boards().open.holders) == 0


def test_what_nodes_hold_is_no_change_of_their_rows() -> None:
    """Prices that are known stay known."""
    overview = Overview(SILENT_AFTER)
    changes = overview.snapshot({"n1": a_node("n1")}, NOW).boards().open.changes
    after = overview.snapshot({"n1": a_node("n1", images=HAS_IMAGE)}, NOW).boards().open
    assert (after.changes, after.holders.of(HAS_IMAGE[0], 1).tolist()) == (changes, [True])


THINGS = st.sets(st.sampled_from("abcde")).map(lambda found: tuple(sorted(found)))


@given(st.lists(st.tuples(st.integers(0, 5), THINGS, st.sampled_from("abcde"), st.integers(6, 8))))
def test_masks_follow_what_rows_hold(steps: list[tuple[int, tuple[str, ...], str, int]]) -> None:
    """Whatever was asked for before, of however many rows."""
    kept, held = Holders(), dict[int, tuple[str, ...]]()
    for row, things, asked, rows in steps:
        kept.put(row, things)
        held[row] = things
        assert kept.of(asked, rows).tolist() == [asked in held.get(each, ()) for each in range(rows)]
        assert len(kept) == len({thing for things in held.values() for thing in things})


def test_few_masks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were asked for last."""
    monkeypatch.setattr(holders, "MASKS", 2)
    kept = Holders()
    for thing in "abac":
        kept.of(thing, 3)
    assert list(kept._masks) == ["a", "c"]


def test_a_placement_changes_nothing_of_it() -> None:
    """A node that has taken a job holds what it held: the next one goes there while it is the better place."""
    nodes = {name: a_node(name, images=images) for name, images in (("n1", ()), ("n2", HAS_IMAGE))}
    overview = Overview(SILENT_AFTER)
    overview.snapshot(nodes, NOW)
    for number in range(2):
        (decision,) = evaluate(overview.snapshot(nodes, NOW), alone(entry_of(of_image(number), NOW)), RULES).decisions
        assert decision.node == "n2"
        overview.place(decision.held)


def test_needs_are_named_as_nodes_name_them() -> None:
    """The image's digest, and that of what the MAP brings along."""
    assert needs(of_image().request) == HAS_IMAGE
    assert needs(of_image(content=True).request) == HAS_IMAGE + HAS_CONTENT
