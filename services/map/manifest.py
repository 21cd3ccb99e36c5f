"""Reads `app.json` and `pkg.json` of both generations of MONAI Application Packages into one description. Pure.

Real packagers break the written specification (MONAI Application Package 0.1 and 1.0): `command` is a shell line or
a JSON array inside a string, `models` an object or an array, sizes come in many spellings. So: lenient, and the raw
JSON is kept.
"""

import contextlib
import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import to_json

from gurney.errors import MapUnreadable
from gurney.model.map import Description, Generation, Manifest, Model, Probe
from gurney.model.resources import Resources

#: Together, in bytes of text.
MAX_MANIFESTS = 128 * 1024
#: Objects and lists within each other. What nests over 200 deep is read out of no document again.
MAX_DEPTH = 64
#: Seconds; as a job may ask.
MAX_TIMEOUT_S = 31_536_000
_UNITS = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
    "ti": 1024**4,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)
#: What only a shell understands: its signs, several lines, and variables set before the program.
_SHELL = re.compile(r"[|&;<>()$`*?\[\]~#\n]|^\s*\w+=")
_WORKING_DIRECTORY: dict[Generation, str] = {"holoscan": "/var/holoscan", "monai": "/var/monai"}

Json = dict[str, Any]


def read(texts: Mapping[str, str]) -> tuple[tuple[Manifest, ...], Description]:
    """Return manifests and description.

    Raises `MapUnreadable`: manifest_missing, manifest_too_large, manifest_broken or no_command.
    """
    _check_size(texts)
    contents = {path: _parse(path, text) for path, text in sorted(texts.items())}
    app, pkg = _pick(contents, "app.json"), _pick(contents, "pkg.json")
    generation = generation_of(contents, app)
    kept, description = _kept(contents, generation), describe(generation, app, pkg)
    _check_text("app.json", description)
    return kept, description


def raw(texts: Mapping[str, str]) -> tuple[Manifest, ...]:
    """Return the manifests of a MAP whose description does not come from them; what is no JSON is left out."""
    _check_size(texts)
    contents: dict[str, Json] = {}
    for path, text in sorted(texts.items()):
        with contextlib.suppress(MapUnreadable):
            contents[path] = _parse(path, text)
    return _kept(contents, generation_of(contents, {}))


def _check_size(texts: Mapping[str, str]) -> None:
    if sum(len(text.encode()) for text in texts.values()) > MAX_MANIFESTS:
        raise MapUnreadable("manifest_too_large", f"the manifests have over {MAX_MANIFESTS} bytes")


def _kept(contents: Mapping[str, Json], generation: Generation) -> tuple[Manifest, ...]:
    return tuple(Manifest(path=path, generation=generation, content=value) for path, value in contents.items())


def generation_of(contents: Mapping[str, Json], app: Json) -> Generation:
    """Tell the generation by the folder in the image, or into which it exported, or by the spelling of the keys."""
    if any("/holoscan/" in path for path in contents):
        return "holoscan"
    if any("/monai/" in path for path in contents):
        return "monai"
    kebab = any("-" in key for key in app)
    camel = any(key in app for key in ("apiVersion", "sdkVersion", "workingDirectory", "sdk"))
    return "monai" if kebab and not camel else "holoscan"


def describe(generation: Generation, app: Json, pkg: Json) -> Description:
    """Return the normalised view."""
    working = _text(_get(app, "workingDirectory"))
    # What is relative is so to the working directory, as the packagers' own runners have it.
    base = posixpath.join(_WORKING_DIRECTORY[generation], working or "")
    return Description(
        generation=generation,
        command=_command(_get(app, "command")),
        environment=_environment(_get(app, "environment")),
        working_directory=working,
        input_path=_mount(base, app.get("input"), "input"),
        output_path=_mount(base, app.get("output"), "output"),
        models=_models(_get(pkg, "models")),
        resources=_resources(_get(pkg, "resources")),
        timeout_s=_timeout(_get(app, "timeout")),
        probes=tuple(_probes(app)),
    )


def size(value: Any) -> int | None:
    """Return bytes of `1Gi`, `7168Mi`, `512MB`, `1024`; None for zero, nothing or what is no size."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        match = _SIZE.fullmatch(str(value))
        return int(float(match[1]) * _UNITS[match[2].lower()]) or None if match else None
    except (ValueError, OverflowError):  # more digits than a number of ours has
        return None


def _parse(path: str, text: str) -> Json:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MapUnreadable("manifest_broken", f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise MapUnreadable("manifest_broken", f"{path} is not a JSON object")
    _check_text(path, content)
    return content


def _check_text(path: str, value: Any) -> None:
    """Refuse what no message can carry: text that is no Unicode, and what nests too deep."""
    try:
        to_json(value)
    except ValueError as error:
        raise MapUnreadable("manifest_broken", f"{path} cannot be kept: {error}") from error
    if _depth(value) > MAX_DEPTH:
        raise MapUnreadable("manifest_broken", f"{path} nests deeper than {MAX_DEPTH} levels")


def _depth(value: Any) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, below), default=0)


def _pick(contents: Mapping[str, Json], name: str) -> Json:
    for path, content in contents.items():
        if posixpath.basename(path) == name:
            return content
    raise MapUnreadable("manifest_missing", f"the MAP has no {name}")


def _get(content: Json, camel: str) -> Any:
    """Return a key in either spelling."""
    kebab = re.sub(r"([A-Z])", lambda found: f"-{found[1].lower()}", camel)
    return content[camel] if camel in content else content.get(kebab)


def _command(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise MapUnreadable("manifest_broken", f"app.json: command is not an argument list: {error}") from error
    if isinstance(value, str):
        value = _shell_line(value.strip())
    if not value:
        raise MapUnreadable("no_command", "app.json has no command")
    if not isinstance(value, list) or not all(isinstance(each, str | int | float) for each in value):
        raise MapUnreadable("manifest_broken", "app.json: command is neither a line nor a list of texts")
    if any("\0" in each for each in value if isinstance(each, str)):
        raise MapUnreadable("manifest_broken", "app.json: command has a NUL character, which no argument can have")
    return tuple(str(each) for each in value)


def _shell_line(line: str) -> list[str]:
    """Return a line's words; a line that needs a shell goes to one."""
    if _SHELL.search(line):
        return ["/bin/sh", "-c", line]
    try:
        return shlex.split(line)
    except ValueError as error:
        raise MapUnreadable("manifest_broken", f"app.json: command: {error}") from error


def _environment(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MapUnreadable("manifest_broken", "app.json: environment is not an object")
    environment = {str(name): "" if each is None else str(each) for name, each in value.items()}
    if any("\0" in name + each for name, each in environment.items()):
        raise MapUnreadable("manifest_broken", "app.json: environment has a NUL character, which no variable can have")
    return environment


def _mount(base: str, value: Any, name: str) -> str:
    path = value.get("path") if isinstance(value, dict) else None
    return posixpath.normpath(posixpath.join(base, path if isinstance(path, str) and path else name))


def _models(value: Any) -> tuple[Model, ...]:
    if isinstance(value, dict):
        return tuple(Model(name=str(name), path=str(path)) for name, path in value.items())
    if isinstance(value, list):
        entries = [each for each in value if isinstance(each, dict)]
        return tuple(Model(name=str(each.get("name", "")), path=str(each.get("path", ""))) for each in entries)
    return ()


def _resources(value: Any) -> Resources:
    asked = value if isinstance(value, dict) else {}
    gpus = _positive(asked.get("gpu"))
    return Resources(
        cpu=_positive(asked.get("cpu")),
        memory=size(asked.get("memory")),
        shared_memory=size(_get(asked, "sharedMemory")),
        gpus=int(gpus) if gpus else 0,
        gpu_memory=size(_get(asked, "gpuMemory")) if gpus else None,
    )


def _probes(app: Json) -> Iterator[Probe]:
    for kind in ("liveness", "readiness"):
        content = app.get(kind)
        if isinstance(content, dict):
            command = content.get("command")
            words = [str(each) for each in command] if isinstance(command, list) else []
            yield Probe(kind=kind, command=tuple(words), content=content)


def _positive(value: Any) -> float | None:
    """Return a number over zero, also out of a text; None for all else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 < number < float("inf") else None


def _timeout(value: Any) -> float | None:
    seconds = _positive(value)
    return None if seconds is None else min(seconds, MAX_TIMEOUT_S)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
