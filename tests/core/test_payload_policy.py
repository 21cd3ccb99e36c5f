"""What may lie beside what in a payload, how things are named, and what payloads and claims may become."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.errors import Conflict, Forbidden, Invalid, NotFound, PayloadInUse
from gurney.model.access import Caller, Role
from gurney.model.base import Idempotency
from gurney.model.payload import CreatePayload, EndPayloads, Payload, PayloadCreate, PayloadState, Uploaded
from gurney.objects.port import check_key
from gurney.runtoken import RunGrant
from services.payload import machine, policy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
JOB, PAY = "job_01k00000000000000000000000", "pay_01k00000000000000000000000"
GRANT = RunGrant(f"{JOB}-2", JOB, 2, PAY)
END = EndPayloads(job=JOB, payload=PAY, run=GRANT.run_id, partial=True, project="p", created_by="ann")

SEGMENT = st.text(st.sampled_from("ab.-0"), min_size=1, max_size=2).filter(lambda text: text not in {".", ".."})
PATH = st.builds(
    lambda parts, folder: "/".join(parts) + ("/" if folder else ""),
    st.lists(SEGMENT, min_size=1, max_size=4),
    st.booleans(),
)


def payload(state: PayloadState = PayloadState.OPEN, *, doomed: bool = False) -> Payload:
    return Payload(
        id=PAY, name="n", job=JOB, run=GRANT.run_id, state=state, doomed=doomed, created_at=NOW, updated_at=NOW
    )


def both(one: str, other: str) -> bool:
    """Tell, slowly and plainly, whether a path would have to be a file and a folder."""
    if one.rstrip("/") == other.rstrip("/"):
        return one != other
    first, second = sorted((one, other), key=len)
    return not first.endswith("/") and second.startswith(f"{first}/")


@given(PATH, PATH)
def test_paths_clash_exactly_when_one_would_be_file_and_folder(one: str, other: str) -> None:
    """The look upwards, the range below and the check of a batch agree with a plain definition."""
    assert (policy.clash(one, [other]) == other) == both(one, other)
    if one == other or both(one, other):
        with pytest.raises(Invalid):
            policy.check_paths([one, other])
    else:
        policy.check_paths([one, other])


@pytest.mark.parametrize("path", ["", "/a", "../a", "a//b", "a/./b", "a\0b", "x" * 1025])
def test_a_bad_path_is_refused_by_name_of_the_field(path: str) -> None:
    """What no file system could take is refused before anything is written."""
    with pytest.raises(Invalid) as refused:
        policy.check_paths(["good", path])
    assert refused.value.errors[0].field == "path"


@given(PATH)
def test_an_object_tells_which_document_must_know_it(path: str) -> None:
    """The id of the file's document follows from the key, which every store takes."""
    key = check_key(policy.object_key(PAY, path, "upl_01k00000000000000000000000"))
    assert policy.file_of_key(key) == policy.file_id(PAY, path)


@pytest.mark.parametrize(
    ("path", "size", "sha256"), [("a", -1, "0" * 64), ("a/", 1, "0" * 64), ("a", 1, "0" * 63), ("a", 1, "G" * 64)]
)
def test_an_impossible_upload_is_refused(path: str, size: int, sha256: str) -> None:
    """Sizes below zero, folders with bytes and what is no digest are refused."""
    with pytest.raises(Invalid):
        policy.check_uploaded(Uploaded(path=path, key="k", size=size, sha256=sha256))


def test_a_refusal_names_ten_jobs_at_most() -> None:
    """Who is in the way is named, but not without end."""
    claims = [machine.claim(PAY, f"job_{n}", "input", NOW) for n in range(12)]
    with pytest.raises(PayloadInUse, match=r"job_9$"):
        policy.refuse_held(PAY, claims)
    policy.refuse_held(PAY, [])


def test_a_grant_reaches_one_input_one_log_and_one_draft() -> None:
    """Another payload, another attempt's log and another run's draft are forbidden; a bound draft is closed."""
    draft = payload(PayloadState.DRAFT)
    policy.require_input(GRANT, PAY)
    policy.require_own_log(GRANT, ["2.log"])
    policy.require_own_draft(GRANT, draft)
    with pytest.raises(Forbidden):
        policy.require_input(GRANT, "pay_other")
    with pytest.raises(Forbidden):
        policy.require_own_log(GRANT, ["1.log"])
    with pytest.raises(Forbidden):
        policy.require_own_draft(GRANT, draft.but(run=f"{JOB}-1"))
    with pytest.raises(Conflict):
        policy.require_own_draft(GRANT, payload())


ALL = [payload(state, doomed=doomed) for state in PayloadState for doomed in (False, True)]


@pytest.mark.parametrize("before", ALL, ids=lambda each: f"{each.state}{'-doomed' * each.doomed}")
def test_every_state_allows_what_the_table_says(before: Payload) -> None:
    """Over all states: only the drawn transitions happen, and what is doomed never changes again."""
    marked, undone, doomed = (
        machine.mark_deleting(before, LATER),
        machine.undo_deleting(before, LATER),
        machine.doom(before),
    )
    state, free = before.state, not before.doomed
    assert (marked.state, marked is before) == (
        (PayloadState.DELETING, False) if free and state is PayloadState.OPEN else (state, True)
    )
    assert (undone.state, undone is before) == (
        (PayloadState.OPEN, False) if free and state is PayloadState.DELETING else (state, True)
    )
    assert doomed.doomed == (before.doomed or state is not PayloadState.OPEN)
    if free and state is PayloadState.DRAFT:
        assert machine.bound(before, END, LATER).state is PayloadState.OPEN
    else:
        with pytest.raises(Conflict):
            machine.bound(before, END, LATER)
    if free and state in {PayloadState.FILLING, PayloadState.OPEN}:
        opened = machine.opened(before, LATER)
        assert (opened.state, opened is before) == (PayloadState.OPEN, state is PayloadState.OPEN)
    else:
        with pytest.raises(NotFound):
            machine.opened(before, LATER)
    assert policy.gone(before) == (not free or state is PayloadState.DELETING)
    assert policy.visible(before) == (free and state in {PayloadState.DRAFT, PayloadState.OPEN})
    assert policy.goes_with_last_claim(before) == (free and state is PayloadState.OPEN)


def test_one_payload_is_bound_to_a_job() -> None:
    """What is bound holds the job's key, a draft only its run's; what is doomed holds none, so its name is free."""
    draft = machine.drafted(PAY, GRANT.job_id, GRANT.run_id, payload(), NOW)
    assert draft.unique_keys() == (f"run:{GRANT.run_id}",)
    for results in (machine.bound(draft, END, LATER), machine.empty_results(PAY, END, LATER)):
        assert set(results.unique_keys()) == {f"run:{GRANT.run_id}", f"job:{JOB}"}
        assert (results.project, results.created_by, results.partial) == ("p", "ann", True)
    assert payload(PayloadState.DELETING, doomed=True).unique_keys() == ()
    assert "name:default:n" in payload(PayloadState.DELETING).unique_keys()


def test_a_client_gets_what_he_asked_for() -> None:
    """Project and author are the caller's, the rest is the body's."""
    caller = Caller(token="t", subject="ann", role=Role.CLINICIAN, project="p")
    asked = PayloadCreate(caller=caller, body=CreatePayload(labels={"a": "b"}, keep=True))
    made = machine.created(PAY, "scans", asked, NOW)
    assert (made.project, made.created_by, made.name, made.labels, made.keep) == ("p", "ann", "scans", {"a": "b"}, True)
    assert made.public()["state"] == "open"
    assert not {"idempotency", "run", "doomed"} & made.public().keys()


def test_what_is_being_filled_takes_no_key_yet() -> None:
    """Name and idempotency key are taken by the opening, which is when the payload comes to be for everybody else."""
    caller = Caller(token="t", subject="ann", role=Role.CLINICIAN)
    idempotency = Idempotency(key="k", digest="d")
    asked = PayloadCreate(caller=caller, body=CreatePayload(), idempotency=idempotency, filling=True)
    filling = machine.created(PAY, "scans", asked, NOW)
    assert filling.unique_keys() == ()
    opened = machine.opened(filling, LATER)
    assert set(opened.unique_keys()) == set(machine.keys_when_open(filling)) == {"idempotency:k", "name:default:scans"}
    assert opened.created_at == opened.updated_at == LATER


def test_the_time_of_a_change_never_goes_back() -> None:
    """Of changes at once the latest time stays."""
    touched = machine.touched(payload(), LATER)
    assert touched.updated_at == LATER
    assert machine.touched(touched, NOW) is touched


def test_the_hold_ends_once() -> None:
    """An ended claim keeps; ending it again changes nothing."""
    claim = machine.claim(PAY, JOB, "input", NOW)
    kept = machine.end_hold(claim)
    assert (claim.state, kept.state) == ("holding", "keeping")
    assert machine.end_hold(kept) is kept
