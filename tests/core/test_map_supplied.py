"""Descriptions that registrants supply."""

import pytest

from gurney.errors import Invalid
from gurney.model.map import AskedDescription, Hardening
from services.map import supplied

LONG = supplied.MAX_TEXT // 6 + 1


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"command": ["\1" * LONG]}, "command"),
        ({"environment": {"A": "\1" * LONG}}, "environment"),
        ({"environment": {"A": "\0"}}, "environment"),
        ({"command": ["a\0b"]}, "command"),
        ({"working_directory": "/a\0b"}, "working_directory"),
    ],
)
def test_what_no_message_or_process_can_have_names_the_field(given: dict[str, object], field: str) -> None:
    """Lengths are those of the messages that a MAP travels in: one that is too long could be read by nobody."""
    with pytest.raises(Invalid) as told:
        supplied.check(AskedDescription.model_validate(given), Hardening())
    assert {each.field for each in told.value.errors} == {f"description.{field}"}


def test_what_is_long_enough_for_everybody_is_taken() -> None:
    """A command line and an environment of ten thousand characters are no fault."""
    supplied.check(AskedDescription(command=("a" * 10_000,), environment={"A": "\1" * 10_000}), Hardening())
