"""Descriptions that registrants supply: checked where they come in, and laid out as manifests are. Pure."""

import posixpath
from collections.abc import Iterator, Sequence
from itertools import permutations

from pydantic_core import to_json

from gurney.errors import FieldError, Invalid, MapUnreadable
from gurney.model.map import AskedDescription, Description, Hardening
from gurney.paths import holds

_FIELD = "description"
#: Longest command line, and environment, in bytes of JSON: hosts take more, a message has both of them twice.
MAX_TEXT = 64 * 1024


def check(asked: AskedDescription | None, hardening: Hardening) -> None:
    """Raise `Invalid` that names every field at fault."""
    faults = list(_faults(asked)) if asked else []
    if hardening.mode == "compatible" and not (hardening.reason or "").strip():
        faults.append(FieldError(field="hardening.reason", message="must say why the strict mode does not do"))
    if faults:
        raise Invalid.fields(faults)


def described(asked: AskedDescription, image_command: Sequence[str]) -> Description:
    """Return the description; `image_command` is the image's own. Raises `MapUnreadable` where there is no command."""
    command = asked.command or tuple(image_command)
    if not command:
        raise MapUnreadable("no_command", "neither the description nor the image has a command")
    return Description(
        generation="supplied",
        command=command,
        environment=asked.environment,
        working_directory=asked.working_directory,
        input_path=posixpath.normpath(asked.input_path),
        output_path=posixpath.normpath(asked.output_path),
        resources=asked.resources,
        timeout_s=asked.timeout_s,
        network=asked.network,
    )


def _faults(asked: AskedDescription) -> Iterator[FieldError]:
    paths = {"input_path": asked.input_path, "output_path": asked.output_path}
    if asked.content is not None:
        paths["content.path"] = asked.content.path
    for name, path in paths.items():
        if fault := _path_fault(path):
            yield FieldError(field=f"{_FIELD}.{name}", message=fault)
    for (name, outer), (other, inner) in permutations(paths.items(), 2):
        if holds(outer, inner):
            yield FieldError(field=f"{_FIELD}.{other}", message=f"must not lie in {name}")
    if asked.working_directory is not None and not posixpath.isabs(asked.working_directory):
        yield FieldError(field=f"{_FIELD}.working_directory", message="must be an absolute path")
    if "\0" in (asked.working_directory or ""):
        yield FieldError(field=f"{_FIELD}.working_directory", message="must not have NUL characters")
    if any("\0" in each for each in asked.command or ()):
        yield FieldError(field=f"{_FIELD}.command", message="must not have NUL characters")
    if len(to_json(asked.command)) > MAX_TEXT:
        yield FieldError(field=f"{_FIELD}.command", message=f"may have {MAX_TEXT} bytes")
    yield from _environment_faults(asked.environment)


def _environment_faults(environment: dict[str, str]) -> Iterator[FieldError]:
    if len(to_json(environment)) > MAX_TEXT:
        yield FieldError(field=f"{_FIELD}.environment", message=f"may have {MAX_TEXT} bytes")
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name + value:
            yield FieldError(field=f"{_FIELD}.environment", message=f"{name[:40]!r} is no variable")


def _path_fault(path: str) -> str | None:
    if not posixpath.isabs(path) or "\0" in path or ":" in path:
        return "must be an absolute path without a colon"
    if posixpath.normpath(path) in {"/", "//"}:
        return "must not be the root of the image"
    return None
