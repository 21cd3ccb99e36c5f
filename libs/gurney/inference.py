"""Bodies of the Open Inference Protocol, version 2: a JSON object, and behind it the bytes of its binary tensors.

A request has `inputs`, an answer `outputs`; each side of a conversation writes one kind and reads the other. Where
there are bytes, the header `Inference-Header-Content-Length` says how long the JSON is.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import from_json, to_json

from gurney.errors import Invalid
from gurney.tensors import Tensor, check_datatype, check_shape, from_bytes, from_data, to_bytes, to_data

HEADER = "Inference-Header-Content-Length"
#: Tensors of one body, and outputs that are asked for.
MAX_TENSORS = 256

Kind = Literal["inputs", "outputs"]

_BINARY_SIZE, _BINARY, _BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"


@dataclass(frozen=True)
class Inference:
    """A request to a model, as its client sent it."""

    inputs: tuple[Tensor, ...]
    id: str | None = None
    #: Names of the outputs that are wanted, in this order; None: all.
    outputs: tuple[str, ...] | None = None
    #: Outputs that are to be told as bytes, or not; what is not here, as `binary_output` says.
    binary: Mapping[str, bool] = field(default_factory=dict)
    binary_output: bool = False

    def is_binary(self, output: str) -> bool:
        """Tell whether the client wants this output as bytes."""
        return self.binary.get(output, self.binary_output)


def read_request(body: bytes, json_length: int | None = None) -> Inference:
    """Read a request, of which the first `json_length` bytes are JSON (None: all); raises `Invalid`."""
    head, tensors = read_body("inputs", body, json_length)
    parameters = _parameters(head, "parameters")
    wanted = _wanted(head.get("outputs"))
    identity = head.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Invalid.field("id", "must be a text")
    return Inference(
        inputs=tensors,
        id=identity,
        outputs=None if wanted is None else tuple(wanted),
        binary={name: binary for name, binary in (wanted or {}).items() if binary is not None},
        binary_output=_flag(parameters, _BINARY_OUTPUT, "parameters") or False,
    )


def read_body(kind: Kind, body: bytes, json_length: int | None = None) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """Return the JSON object of a body and its tensors, whose arrays use its bytes; raises `Invalid`."""
    if json_length is not None and not 0 <= json_length <= len(body):
        raise Invalid.field(HEADER, f"says {json_length}, the body has {len(body)} bytes")
    head = _parsed(body if json_length is None else body[:json_length])
    given = head.get(kind)
    if not isinstance(given, list) or not given:
        raise Invalid.field(kind, "must be a list of at least one tensor")
    if len(given) > MAX_TENSORS:
        raise Invalid.field(kind, f"has {len(given)} tensors, at most {MAX_TENSORS} are allowed")
    left = memoryview(body)[len(body) if json_length is None else json_length :]
    tensors = []
    for number, each in enumerate(given):
        tensor, left = _tensor(each, left, f"{kind}[{number}]")
        tensors.append(tensor)
    if left:
        raise Invalid.field(kind, f"the body has {len(left)} bytes that belong to no tensor")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise Invalid.field(kind, "has two tensors of one name")
    return head, tuple(tensors)


def write_body(
    kind: Kind, head: Mapping[str, Any], tensors: Sequence[Tensor], binary: Collection[str] = ()
) -> tuple[bytes, int | None]:
    """Return a body and the length of its JSON (None: all); the tensors named in `binary` go as bytes.

    Raises `Invalid` for one that JSON cannot carry.
    """
    listed, parts = [], [b""]
    for tensor in tensors:
        told: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.array.shape),
        }
        if tensor.name in binary:
            parts.append(to_bytes(tensor))
            told["parameters"] = {_BINARY_SIZE: len(parts[-1])}
        else:
            told["data"] = to_data(tensor)
        listed.append(told)
    parts[0] = to_json({**head, kind: listed})
    return b"".join(parts), len(parts[0]) if len(parts) > 1 else None


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        head = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Invalid(f"the body is no JSON: {error}") from None
    if not isinstance(head, dict):
        raise Invalid("the body must be a JSON object")
    return head


def _tensor(given: object, left: memoryview, at: str) -> tuple[Tensor, memoryview]:
    """Return a tensor, and what is left of the bytes behind it."""
    if not isinstance(given, dict):
        raise Invalid.field(at, "must be an object")
    name = _name(given, at)
    datatype = check_datatype(given.get("datatype"), f"{at}.datatype")
    shape = check_shape(given.get("shape"), f"{at}.shape")
    size = _parameters(given, f"{at}.parameters").get(_BINARY_SIZE)
    if size is None:
        return Tensor(name, datatype, from_data(datatype, shape, given.get("data"), f"{at}.data")), left
    if "data" in given:
        raise Invalid.field(f"{at}.data", f"is there beside {_BINARY_SIZE}")
    where = f"{at}.parameters.{_BINARY_SIZE}"
    if type(size) is not int or not 0 <= size <= len(left):
        raise Invalid.field(where, f"must be a whole number up to {len(left)}: so many bytes are left")
    return Tensor(name, datatype, from_bytes(datatype, shape, left[:size], where)), left[size:]


def _wanted(given: object) -> dict[str, bool | None] | None:
    """Return the outputs that are asked for, and how; None: all."""
    if given is None or given == []:
        return None
    if not isinstance(given, list) or len(given) > MAX_TENSORS:
        raise Invalid.field("outputs", f"must be a list of at most {MAX_TENSORS} objects")
    wanted: dict[str, bool | None] = {}
    for number, each in enumerate(given):
        at = f"outputs[{number}]"
        if not isinstance(each, dict):
            raise Invalid.field(at, "must be an object")
        parameters = _parameters(each, f"{at}.parameters")
        if parameters.get("classification"):
            raise Invalid.field(f"{at}.parameters.classification", "is not supported")
        name = _name(each, at)
        if name in wanted:
            raise Invalid.field("outputs", "has two of one name")
        wanted[name] = _flag(parameters, _BINARY, f"{at}.parameters")
    return wanted


def _name(given: Mapping[str, Any], at: str) -> str:
    name = given.get("name")
    if not isinstance(name, str) or not name:
        raise Invalid.field(f"{at}.name", "must be a text that is not empty")
    return name


def _parameters(given: Mapping[str, Any], at: str) -> Mapping[str, Any]:
    parameters = given.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise Invalid.field(at, "must be an object")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, at: str) -> bool | None:
    flag = parameters.get(name)
    if flag is not None and not isinstance(flag, bool):
        raise Invalid.field(f"{at}.{name}", "must be true or false")
    return flag
