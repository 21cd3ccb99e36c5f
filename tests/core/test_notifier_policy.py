"""Who is told, when it is tried again, and which addresses are allowed."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.errors import Invalid
from gurney.model.handler import Delivery, DeliveryAttempt, DeliveryState, Handler
from gurney.model.job import JobEvent
from gurney.testing.samples import sample
from services.notifier import policy
from services.notifier.targets import allowed, check_url

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HANDLER = Handler(
    id="hdl_1", created_at=NOW, created_by="a", url="http://127.0.0.1/", events=("job.succeeded",), secret="whsec_"
)
EVENT = sample(JobEvent).but(
    event="succeeded", at=NOW, project="default", handlers=None, labels={"site": "a"}, reason="exit_nonzero"
)


def wanted(handler: Handler = HANDLER, event: JobEvent = EVENT) -> bool:
    return policy.wanted(handler, event)


def test_a_handler_is_told_of_what_it_asked_for() -> None:
    """Event type, project, MAP, labels and the job's own list of handlers decide."""
    assert wanted()
    assert not wanted(event=EVENT.but(event="failed"))
    assert not wanted(event=EVENT.but(project="other"))
    assert not wanted(HANDLER.but(state="disabled"))
    assert not wanted(HANDLER.but(map="map_other"))
    assert wanted(HANDLER.but(map=EVENT.map.id))
    assert not wanted(HANDLER.but(labels={"site": "b"}))
    assert wanted(HANDLER.but(labels={"site": "a"}))
    assert not wanted(event=EVENT.but(handlers=("hdl_2",)))
    assert wanted(HANDLER.but(map="map_other"), EVENT.but(handlers=("hdl_1",))) is True


def test_a_handler_is_not_told_of_what_was_before_it() -> None:
    """An event older than the handler, or from before it was enabled again, is not for it."""
    assert not wanted(HANDLER.but(created_at=NOW + timedelta(microseconds=1)))
    assert not wanted(HANDLER.but(enabled_at=NOW + timedelta(microseconds=1)))
    assert wanted(HANDLER.but(enabled_at=NOW))


def test_no_free_text_of_an_application_leaves() -> None:
    """The body has ids, state, reason code, times, counts and links, and nothing else."""
    sent = json.loads(policy.body("job.succeeded", EVENT))
    assert set(sent) == {"type", "timestamp", "data"}
    assert set(sent["data"]) == {
        "id", "map", "payload", "results", "state", "attempt", "exit_code", "counts", "reason", "links",
        "created_at", "scheduled_at", "started_at", "stopped_at",
    }  # fmt: skip
    assert set(sent["data"]["map"]) == {"id", "name"}


def delivery() -> Delivery:
    return policy.first_delivery("dlv_1", HANDLER, EVENT, NOW)


def attempt(status: int | None, at: datetime = NOW) -> DeliveryAttempt:
    return DeliveryAttempt(at=at, status=status, duration_ms=1)


def test_a_delivery_is_taken_once_at_a_time() -> None:
    """While somebody has taken it nobody else can; later, and when it is due, one can."""
    taken = delivery()
    assert policy.take(taken, NOW) is None
    later = NOW + timedelta(seconds=policy.TAKEN_S)
    again = policy.take(taken, later)
    assert again is not None
    assert again.revision == taken.revision + 1
    assert policy.take(again, later) is None


def test_what_an_earlier_life_has_taken_is_free() -> None:
    """A replica that is alone takes at once what was taken before it was born, and nothing that it took itself."""
    taken, now = delivery(), NOW + timedelta(seconds=2)
    assert policy.take(taken, now, born=NOW + timedelta(seconds=1)) is not None
    assert policy.take(taken, now, born=NOW) is None


@pytest.mark.parametrize(("status", "state"), [(200, "delivered"), (204, "delivered"), (410, "failed")])
def test_an_answer_ends_a_delivery(status: int, state: str) -> None:
    """Success delivers, 410 ends it at once."""
    ended = policy.tried(delivery(), attempt(status), 3600, 0.5)
    assert (ended.state, ended.next_attempt_at, len(ended.attempts)) == (state, None, 1)
    assert policy.take(ended, NOW + timedelta(days=9)) is None


@given(st.lists(st.tuples(st.sampled_from([None, 500, 302, 404]), st.floats(0, 1)), min_size=1, max_size=60))
def test_a_failing_target_is_tried_later_and_later_until_patience_ends(tries: list[tuple[int | None, float]]) -> None:
    """Waits never shrink by more than the jitter, and what is given up was tried for as long as was promised."""
    current, at = delivery(), NOW
    for status, chance in tries:
        current = policy.tried(current, attempt(status, at), 86_400, chance)
        if current.state is DeliveryState.FAILED:
            assert at - NOW > timedelta(seconds=86_400 - policy.BACKOFF_S[-1] * (1 + policy.JITTER))
            return
        assert current.next_attempt_at is not None
        wait = (current.next_attempt_at - at).total_seconds()
        base = policy.BACKOFF_S[min(len(current.attempts), len(policy.BACKOFF_S)) - 1]
        assert base * (1 - policy.JITTER) - 1e-3 <= wait <= base * (1 + policy.JITTER) + 1e-3
        at = current.next_attempt_at


@pytest.mark.parametrize(
    ("address", "none", "loopback"),
    [
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("::ffff:10.0.0.1", False, False),
        ("10.1.2.3", False, False),
        ("192.168.0.1", False, False),
        ("169.254.169.254", False, False),
        ("fe80::1", False, False),
        ("0.0.0.0", False, False),
        ("224.0.0.1", False, False),
        ("93.184.216.34", True, True),
        ("2606:2800:220:1::1", True, True),
    ],
)
def test_private_addresses_need_a_setting(address: str, none: bool, loopback: bool) -> None:  # noqa: FBT001
    """Private, link-local and multicast addresses are refused unless the setting opens them."""
    assert allowed(address, "none") is none
    assert allowed(address, "loopback") is loopback
    assert allowed(address, "all")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a/",
        "http://",
        "http://user:x@a/",
        "http://10.0.0.1/",
        "http://[fe80::1]/",
        "file:///etc/passwd",
        "http://a:99999/",
    ],
)
def test_a_url_that_cannot_be_a_handler_names_the_field(url: str) -> None:
    """A bad URL is an error of the field `url`."""
    with pytest.raises(Invalid) as fault:
        check_url(url, "loopback")
    assert [each.field for each in fault.value.errors] == ["url"]
