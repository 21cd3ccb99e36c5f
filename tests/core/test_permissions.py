"""Who may say and hear what, as it is derived from the tables."""

from gurney import permissions
from gurney.subjects import OPERATIONS, SUBJECTS


def test_every_sender_and_answerer_of_the_tables_is_a_user() -> None:
    """Each service that the tables name has permissions, and the agents have their own."""
    named = {o.service for o in OPERATIONS} | {s.publisher for s in SUBJECTS}
    assert named - {"agent"} <= set(permissions.SERVICES)
    users = [each.user for each in permissions.everybody(["n1", "n2", "n1"])]
    assert users == [*permissions.SERVICES, "agent-n1", "agent-n2", "integrator"]


def test_an_agent_speaks_and_is_spoken_to_under_its_own_name_alone() -> None:
    """Every subject of an agent has its node as a token, but for its own discovery; it answers nobody."""
    agent = permissions.of_agent("n1")
    mine = [subject.split(".") for subject in agent.publish if not subject.startswith("$SRV")]
    assert all({"n1", "agent-n1"} & set(tokens) for tokens in mine)
    assert agent.subscribe == ("_INBOX_agent-n1.>",)
    assert not agent.answers


def test_nobody_who_answers_nothing_may_answer() -> None:
    """Only who has operations of his own may publish to the inboxes of those who ask."""
    answering = {each.user for each in permissions.everybody(["n1"]) if each.answers}
    assert answering == {operation.service for operation in OPERATIONS}


def test_everybody_hears_his_own_inbox_alone() -> None:
    """No two users listen at one place for answers; integrators have none."""
    for user in permissions.everybody(["n1", "n2"]):
        inboxes = [subject for subject in user.subscribe if subject.startswith("_INBOX")]
        assert inboxes == ([] if user.user == "integrator" else [f"_INBOX_{user.user}.>"])


def test_an_integrator_hears_and_says_nothing() -> None:
    """An integrator subscribes to the events of jobs, MAPs and payloads, and may publish nothing at all."""
    integrator = permissions.integrator()
    assert integrator.subscribe == ("job.>", "map.>", "payload.>")
    assert 'publish: {"deny": [">"]}' in permissions.rendered([integrator], {"integrator": "x"})


def test_the_operator_comes_only_when_asked_for() -> None:
    """A user who may do everything is an option."""
    assert "operator" not in {each.user for each in permissions.everybody([])}
    assert permissions.everybody([], with_operator=True)[-1] == permissions.operator()
