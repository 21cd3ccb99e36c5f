"""Which events a client sees, where they begin, and how they are written."""

import json

import pytest

from gurney.errors import Invalid
from gurney.feed import Extent, Item
from gurney.model.access import Caller, Role
from services.edge import event_feed, sse
from services.edge.event_feed import Start, rendered, start, visible
from services.edge.packing import ZIP, media_of

HELD = Extent(epoch=77, first=10, last=20)
ANN = Caller(token="t", subject="ann", role=Role.CLINICIAN)
DEV = ANN.but(subject="dev", role=Role.DEVELOPER)
ADMIN = ANN.but(subject="adm", role=Role.ADMINISTRATOR, project="other")
OWN = {"project": "default", "created_by": "ann"}
OTHERS = {"project": "default", "created_by": "bob"}
FAR = {"project": "far", "created_by": "ann"}


@pytest.mark.parametrize(
    ("last_id", "expected"),
    [
        (None, Start(20)),
        ("", Start(20)),
        ("77-15", Start(15)),
        ("77-20", Start(20)),
        ("77-9", Start(9)),
        ("77-8", Start(20, "too_old")),
        ("77-21", Start(20, "too_old")),
        ("76-15", Start(20, "foreign_id")),
        ("rubbish", Start(20, "foreign_id")),
        ("77-\u0663", Start(20, "foreign_id")),
    ],
)
def test_events_go_on_where_the_client_ended_or_say_that_they_do_not(last_id: str | None, expected: Start) -> None:
    """An id of this stream that misses nothing resumes; any other begins now, and a reset says why."""
    assert start(last_id, HELD, afresh=HELD.last) == expected


@pytest.mark.parametrize(
    ("caller", "noun", "body", "seen"),
    [
        (ANN, "job", OWN, True),
        (ANN, "job", OTHERS, False),
        (ANN, "payload", FAR, False),
        (ANN, "map", OTHERS, True),
        (ANN, "map", FAR, False),
        (ANN, "node", {}, False),
        (DEV, "job", OTHERS, True),
        (DEV, "job", FAR, False),
        (DEV, "node", {}, True),
        (ADMIN, "job", FAR, True),
        (ADMIN, "node", {}, True),
    ],
)
def test_each_role_sees_the_events_of_what_it_sees(
    caller: Caller, noun: str, body: dict[str, object], *, seen: bool
) -> None:
    """A clinician sees his own and his project's MAPs, a developer his project, an administrator all."""
    assert visible(caller, noun, body) is seen


def test_the_schedulers_part_of_an_event_stays_inside() -> None:
    """What `job.requested` carries for the scheduler does not reach clients, not even administrators."""
    item = Item(12, "job.requested.job_1", json.dumps(OWN | {"placement": {"secret": 1}}).encode())
    for caller in (ADMIN, DEV, ANN):
        told = rendered(item, 77, caller)
        assert told is not None
        assert b"secret" not in told
        assert b"id: 77-12\nevent: job.requested\n" in told


def test_unknown_types_are_named() -> None:
    """A type that does not exist is an error, so that nobody waits for it."""
    assert event_feed.types(" job.succeeded,map.ready ") == {"job.succeeded", "map.ready"}
    assert event_feed.types("") == frozenset()
    with pytest.raises(Invalid, match=r"job\.exploded"):
        event_feed.types("job.succeeded,job.exploded")


def test_an_event_is_written_as_the_standard_has_it() -> None:
    """Id, name, one line of data, an empty line; a line break in data becomes a second line of data."""
    assert sse.event("a.b", {"x": "ü\n"}, "1-2") == 'id: 1-2\nevent: a.b\ndata: {"x": "ü\\n"}\n\n'.encode()
    assert sse.event("a", b"1\n2") == b"event: a\ndata: 1\ndata: 2\n\n"


@pytest.mark.parametrize(
    ("accept", "tar"),
    [
        ("", False),
        ("*/*", False),
        ("application/zip", False),
        ("application/x-tar", True),
        ("application/x-tar, */*;q=0.1", True),
        ("application/x-tar;q=0.5, application/zip", False),
        ("application/zip;q=0.2, APPLICATION/X-TAR;Q=0.9", True),
        ("text/html, */*", False),
        ("application/x-tar;q=oops", False),
    ],
)
def test_an_archive_is_a_zip_unless_a_tar_is_wanted_more(accept: str, *, tar: bool) -> None:
    """`Accept` chooses between zip and tar; whatever else it says, the answer is a zip."""
    assert (media_of(accept) != ZIP) is tar
