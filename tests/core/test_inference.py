"""Bodies of the Open Inference Protocol: what is written is read as it was, and bad ones are refused by name."""

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gurney.errors import Invalid
from gurney.inference import read_body, read_request, write_body
from gurney.tensors import DTYPES, Tensor, datatype_of

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, name: str = "x", *, json_only: bool = False) -> Tensor:
    names = [each for each in DTYPES if not (json_only and each == "FP16")]
    datatype, shape = draw(st.sampled_from(names)), draw(SHAPES)
    count, dtype = math.prod(shape), DTYPES[datatype]
    if datatype == "BYTES":
        text = st.text().map(str.encode) if json_only else st.binary(max_size=8)
        array = np.empty(count, np.object_)
        array[:] = draw(st.lists(text, min_size=count, max_size=count))
    elif dtype.kind == "b":
        array = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype)
    else:
        size = count * dtype.itemsize
        array = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype)
        if json_only and dtype.kind == "f":
            array = np.nan_to_num(array)
    return Tensor(name, datatype, array.reshape(shape))


def same(one: Tensor, other: Tensor) -> bool:
    if (one.name, one.datatype, one.array.shape) != (other.name, other.datatype, other.array.shape):
        return False
    if one.datatype == "BYTES":
        return bool(one.array.tolist() == other.array.tolist())
    return one.array.tobytes() == other.array.tobytes()


@given(st.tuples(tensors("a"), tensors("b", json_only=True), tensors("c")))
def test_what_is_written_is_read_as_it_was(given: tuple[Tensor, ...]) -> None:
    """Tensors of every type and shape come out bit by bit as they went in, as bytes and as JSON in one body."""
    body, length = write_body("inputs", {"id": "1"}, given, binary={"a", "c"})
    head, read = read_body("inputs", body, length)
    assert head["id"] == "1"
    assert len(read) == len(given)
    assert all(same(*pair) for pair in zip(given, read, strict=True))


@given(tensors(json_only=True))
def test_json_is_a_body_of_its_own(tensor: Tensor) -> None:
    """A body without bytes is JSON that any parser reads, needs no length, and may be nested as its shape is."""
    body, length = write_body("inputs", {}, [tensor])
    assert length is None
    plain = json.loads(body)
    if tensor.datatype != "BYTES" and tensor.array.ndim:
        plain["inputs"][0]["data"] = tensor.array.tolist()
    assert same(read_request(json.dumps(plain).encode()).inputs[0], tensor)


def request(**changes: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0], **changes}
    return json.dumps({"inputs": [{key: each for key, each in tensor.items() if each is not ...}]}).encode()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "inputs[0].name"),
        ({"name": 1}, "inputs[0].name"),
        ({"name": ...}, "inputs[0].name"),
        ({"datatype": "FP8"}, "inputs[0].datatype"),
        ({"datatype": ["FP32"]}, "inputs[0].datatype"),
        ({"datatype": "FP16"}, "inputs[0].data"),
        ({"shape": [2]}, ""),
        ({"shape": [3]}, "inputs[0].data"),
        ({"shape": []}, "inputs[0].data"),
        ({"shape": [-1, -2]}, "inputs[0].shape"),
        ({"shape": [True, 2]}, "inputs[0].shape"),
        ({"shape": [1.0, 2]}, "inputs[0].shape"),
        ({"shape": "12"}, "inputs[0].shape"),
        ({"shape": ...}, "inputs[0].shape"),
        ({"shape": [1] * 33}, "inputs[0].shape"),
        ({"shape": [0, 1 << 41]}, "inputs[0].shape"),
        ({"shape": [1 << 32, 1 << 32], "data": []}, "inputs[0].shape"),
        ({"data": [1.0]}, "inputs[0].data"),
        ({"data": [1.0, None]}, "inputs[0].data"),
        ({"data": [1.0, "2"]}, "inputs[0].data"),
        ({"data": [1.0, True]}, "inputs[0].data"),
        ({"data": [[1.0], [2.0]]}, "inputs[0].data"),
        ({"data": [[1.0, [2.0]]]}, "inputs[0].data"),
        ({"shape": [2, 2], "data": [[1, 2, 3], [4]]}, "inputs[0].data"),
        ({"shape": [2, 2], "data": [[1, 2, 3, 4]]}, "inputs[0].data"),
        ({"data": [[1.0, 2.0], 3.0]}, "inputs[0].data"),
        ({"data": {"0": 1.0}}, "inputs[0].data"),
        ({"data": ...}, "inputs[0].data"),
        ({"data": [1e300, 0]}, "inputs[0].data"),
        ({"data": [10**400, 0]}, "inputs[0].data"),
        ({"datatype": "INT8", "data": [127, 128]}, "inputs[0].data"),
        ({"datatype": "INT8", "data": [1, 2.0]}, "inputs[0].data"),
        ({"datatype": "UINT64", "data": [0, -1]}, "inputs[0].data"),
        ({"datatype": "INT64", "data": [0, 1 << 63]}, "inputs[0].data"),
        ({"datatype": "BOOL", "data": [0, 1]}, "inputs[0].data"),
        ({"datatype": "BYTES", "data": ["a", 1]}, "inputs[0].data"),
        ({"parameters": []}, "inputs[0].parameters"),
        ({"parameters": {"binary_data_size": 0}}, "inputs[0].data"),
        ({"parameters": {"binary_data_size": 8}, "data": ...}, "inputs[0].parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": 0}, "data": ...}, "inputs[0].parameters.binary_data_size"),
    ],
)
def test_bad_tensors_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    """Wrong names, types, shapes and numbers are refused, and the error says which field it is."""
    if not field:
        assert read_request(request(**changes)).inputs[0].array.tolist() == [1.0, 2.0]
        return
    with pytest.raises(Invalid) as caught:
        read_request(request(**changes))
    assert [each.field for each in caught.value.errors] == [field]


def binary(size: object, raw: bytes, **changes: Any) -> tuple[bytes, int]:
    head = request(**{"data": ..., "parameters": {"binary_data_size": size}, **changes})
    return head + raw, len(head)


@pytest.mark.parametrize(
    ("size", "raw", "changes"),
    [
        (8, b"\0" * 7, {}),
        (8, b"\0" * 9, {}),
        (4, b"\0" * 8, {}),
        (4, b"\0" * 4, {}),
        (12, b"\0" * 12, {}),
        (-1, b"\0" * 8, {}),
        (True, b"\0", {"datatype": "UINT8", "shape": [1]}),
        (8.0, b"\0" * 8, {}),
        ("8", b"\0" * 8, {}),
        (1 << 70, b"\0" * 8, {}),
        (2, b"\0\2", {"datatype": "BOOL"}),
        (4, b"\0" * 4, {"datatype": "BYTES"}),
        (9, b"\1\0\0\0a\2\0\0\0", {"datatype": "BYTES"}),
        (9, b"\xff\xff\xff\xffa\0\0\0\0", {"datatype": "BYTES"}),
        (10, b"\1\0\0\0a\0\0\0\0b", {"datatype": "BYTES"}),
        (8, b"\3\0\0\0abc\0", {"datatype": "BYTES"}),
        (0, b"", {"datatype": "BYTES", "shape": [1 << 39]}),
    ],
)
def test_lengths_that_lie_are_refused(size: object, raw: bytes, changes: dict[str, Any]) -> None:
    """Whatever a length says, exactly the bytes of the shape are read, or none."""
    with pytest.raises(Invalid):
        read_request(*binary(size, raw, **changes))


@pytest.mark.parametrize("length", [-1, 0, 1, 10**9])
def test_the_length_of_the_json_is_checked(length: int) -> None:
    """A length of the JSON that is not its own is refused."""
    with pytest.raises(Invalid):
        read_request(request(), length)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"inputs": null}',
        b'{"inputs": []}',
        b'{"inputs": [1]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1e999]}]}',
        b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["\\ud800"]}]}',
        request()[:-1] + b', "id": 1}',
        request()[:-1] + b', "parameters": 1}',
        request()[:-1] + b', "parameters": {"threshold": NaN}}',
        request()[:-1] + b', "parameters": {"binary_data_output": 1}}',
        request()[:-1] + b', "outputs": {}}',
        request()[:-1] + b', "outputs": [1]}',
        request()[:-1] + b', "outputs": [{}]}',
        request()[:-1] + b', "outputs": [{"name": "y"}, {"name": "y"}]}',
        request()[:-1] + b', "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}',
        request()[:-1] + b', "outputs": [{"name": "y", "parameters": {"classification": 3}}]}',
        request()[:-2] + b"," + request()[12:],
        b'{"inputs": [' + b",".join([b"{}"] * 257) + b"]}",
    ],
)
def test_bad_bodies_are_refused(body: bytes) -> None:
    """What is no JSON, no object, or another than the protocol's is refused; NaN and infinity are no JSON."""
    with pytest.raises(Invalid):
        read_request(body)


@given(st.data())
def test_whatever_comes_is_read_or_refused(data: st.DataObject) -> None:
    """A body with bytes changed, cut out or put in, and any length of its JSON, raises nothing but `Invalid`."""
    pair = [data.draw(tensors("a")), data.draw(tensors("b", json_only=True))]
    body, length = write_body("inputs", {"outputs": [{"name": "y"}]}, pair, binary={"a"})
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    near = st.integers((length or 0) - 3, (length or 0) + 3)
    with contextlib.suppress(Invalid):
        read_request(bytes(changed), data.draw(st.none() | near))


def test_outputs_are_told_as_they_are_wanted() -> None:
    """Which outputs are wanted, and which of them as bytes: each its own word first, then the request's."""
    asked = json.loads(request())
    assert read_request(json.dumps(asked).encode()).outputs is None
    asked["parameters"] = {"binary_data_output": True}
    asked["outputs"] = [{"name": "y"}, {"name": "z", "parameters": {"binary_data": False}}]
    read = read_request(json.dumps(asked).encode())
    assert read.outputs == ("y", "z")
    assert [read.is_binary(name) for name in ("y", "z")] == [True, False]


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("y", "FP32", np.array([np.nan], "<f4")),
        Tensor("y", "FP64", np.array([-np.inf])),
        Tensor("y", "FP16", np.array([1], "<f2")),
        Tensor("y", "BYTES", np.array([b"\xff"], np.object_)),
    ],
)
def test_what_json_cannot_carry_is_never_told_as_something_else(tensor: Tensor) -> None:
    """NaN, infinity, FP16 and bytes that are no text are refused in JSON, and go as bytes."""
    with pytest.raises(Invalid):
        write_body("outputs", {}, [tensor])
    body, length = write_body("outputs", {}, [tensor], binary={"y"})
    assert same(read_body("outputs", body, length)[1][0], tensor)


def test_arrays_have_the_protocols_types() -> None:
    """Each type of the protocol is that of its arrays, and numpy's others have none."""
    assert [datatype_of(each) for each in DTYPES.values()] == list(DTYPES)
    with pytest.raises(Invalid):
        datatype_of(np.dtype("c8"))
