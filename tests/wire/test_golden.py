"""Messages on the wire: one golden file per message and version; old files decode for ever.

A new message, or a field added to one, gets a file by `python tests/wire/test_golden.py`; a file that is there is never
changed by it, unless its message only gained fields.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gurney.model.base import Message
from gurney.model.event import SCHEMA
from gurney.subjects import OPERATIONS, SUBJECTS
from gurney.testing.samples import sample

GOLDEN = Path(__file__).parent / "golden"


def name_of(message: type[Message]) -> str:
    return message.__name__.replace("[", "-of-").replace("]", "")


MESSAGES: dict[str, type[Message]] = {
    name_of(message): message
    for message in [
        *(subject.payload for subject in SUBJECTS),
        *(operation.request for operation in OPERATIONS),
        *(operation.reply for operation in OPERATIONS),
    ]
}


def file_of(name: str) -> Path:
    return GOLDEN / f"{name}.v{SCHEMA}.json"


def test_every_message_has_a_file_and_every_file_a_message() -> None:
    """What is sent is what the golden files show."""
    assert {file.name for file in GOLDEN.iterdir()} == {file_of(name).name for name in MESSAGES}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_message_is_written_as_its_golden_file_says(name: str) -> None:
    """Every field of a message has the name and form that peers know."""
    assert json.loads(sample(MESSAGES[name]).encode()) == json.loads(file_of(name).read_text())


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_a_golden_file_decodes_also_with_fields_of_the_future(name: str) -> None:
    """A message of this version, and one of a newer peer, is read back to the same values."""
    content = json.loads(file_of(name).read_text())
    expected = sample(MESSAGES[name])
    assert MESSAGES[name].decode(json.dumps(content).encode()) == expected
    assert MESSAGES[name].decode(json.dumps(content | {"from_the_future": 1}).encode()) == expected


def only_gained(old: Any, new: Any) -> bool:
    """Tell whether a message, and each one within it, lost and changed nothing."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(field in new and only_gained(value, new[field]) for field, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(only_gained, old, new))
    return bool(old == new)


def write_files() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, message in MESSAGES.items():
        new = json.loads(sample(message).encode())
        file = file_of(name)
        old = json.loads(file.read_text()) if file.exists() else {}
        if not only_gained(old, new):
            sys.exit(f"{name}: a field changed or went: that needs a new version")
        file.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_files()
