"""Tensors of the Open Inference Protocol, version 2: as JSON, as the bytes of its binary extension, and as arrays.

Both are row-major; bytes are little-endian, without padding, and elements of BYTES have their length before them, in
four bytes. JSON's numbers are finite, so that a tensor with NaN or infinity goes as bytes alone, as FP16 does.
"""

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gurney.errors import Invalid

Array = npt.NDArray[Any]

BYTES = "BYTES"
DTYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype("O"),
}
#: Whose numbers JSON carries none of.
BINARY_ONLY = frozenset({"FP16"})

MAX_DIMENSIONS = 32
#: Elements, empty dimensions apart: more than any body of a request can hold.
MAX_ELEMENTS = 1 << 40

_LENGTH = struct.Struct("<I")
_ELEMENTS: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
_NAMES = {"b": "true or false", "u": "whole numbers", "i": "whole numbers", "f": "numbers", "O": "texts"}


class Tensor(NamedTuple):
    """A named array. Elements of BYTES are `bytes`; an array that was read may not be written to."""

    name: str
    datatype: str
    array: Array


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return the protocol's name of a numpy type; raises `Invalid` where it has none."""
    for name, each in DTYPES.items():
        if each == dtype:
            return name
    raise Invalid(f"the protocol has no datatype for {dtype}")


def check_datatype(datatype: object, field: str) -> str:
    """Return it; raises `Invalid` that names `field`."""
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise Invalid.field(field, f"must be one of {', '.join(DTYPES)}")
    return datatype


def check_shape(shape: object, field: str) -> tuple[int, ...]:
    """Return what JSON gave as the shape; raises `Invalid` that names `field`."""
    if not isinstance(shape, list) or any(type(each) is not int or each < 0 for each in shape):
        raise Invalid.field(field, "must be a list of whole numbers, none below 0")
    if len(shape) > MAX_DIMENSIONS:
        raise Invalid.field(field, f"has {len(shape)} dimensions, at most {MAX_DIMENSIONS} are allowed")
    if math.prod(each or 1 for each in shape) > MAX_ELEMENTS:
        raise Invalid.field(field, f"is of more than {MAX_ELEMENTS} elements")
    return tuple(shape)


def from_data(datatype: str, shape: tuple[int, ...], data: object, field: str) -> Array:
    """Return what JSON gave as the data, flat or nested as the shape says; raises `Invalid` that names `field`."""
    if datatype in BINARY_ONLY:
        raise Invalid.field(field, f"{datatype} is sent as binary data only")
    if not isinstance(data, list):
        raise Invalid.field(field, "must be a list")
    flat = _flat(data, shape, field)
    if len(flat) != math.prod(shape):
        raise Invalid.field(field, f"has {len(flat)} elements, the shape says {math.prod(shape)}")
    dtype = DTYPES[datatype]
    if not _ELEMENTS[dtype.kind].issuperset(map(type, flat)):
        raise Invalid.field(field, f"of {datatype} must be {_NAMES[dtype.kind]}")
    if datatype == BYTES:
        return _objects([text.encode() for text in flat], shape)
    try:
        with np.errstate(over="ignore"):  # it is infinite then
            array = np.array(flat, dtype)
    except OverflowError:
        raise Invalid.field(field, f"has a number that {datatype} cannot hold") from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise Invalid.field(field, f"has a number that {datatype} cannot hold")
    return array.reshape(shape)


def to_data(tensor: Tensor) -> list[Any]:
    """Return the data as JSON carries it, flat; raises `Invalid` for what it cannot carry."""
    name, datatype, array = tensor
    if datatype in BINARY_ONLY:
        raise Invalid(f"{name} is {datatype}, which goes as binary data only")
    if datatype == BYTES:
        try:
            return [each.decode() for each in array.flat]
        except UnicodeDecodeError:
            raise Invalid(f"{name} has bytes that are no text: ask for it as binary data") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Invalid(f"{name} has a value that is not finite: ask for it as binary data")
    data: list[Any] = array.ravel().tolist()
    return data


def from_bytes(datatype: str, shape: tuple[int, ...], raw: memoryview, field: str) -> Array:
    """Return the array of these bytes, which it goes on to use; raises `Invalid` that names `field`."""
    count, dtype = math.prod(shape), DTYPES[datatype]
    if datatype == BYTES:
        return _objects(_split(raw, count, field), shape)
    if len(raw) != count * dtype.itemsize:
        raise Invalid.field(field, f"has {len(raw)} bytes, shape and datatype say {count * dtype.itemsize}")
    if datatype == "BOOL":
        octets = np.frombuffer(raw, np.uint8)
        if (octets > 1).any():
            raise Invalid.field(field, "of BOOL must be bytes 0 and 1")
        return octets.view(np.bool_).reshape(shape)
    return np.frombuffer(raw, dtype).reshape(shape)


def to_bytes(tensor: Tensor) -> bytes:
    """Return the data as the binary extension carries it."""
    if tensor.datatype != BYTES:
        return np.ascontiguousarray(tensor.array, DTYPES[tensor.datatype]).tobytes()
    return b"".join(chain.from_iterable((_LENGTH.pack(len(each)), each) for each in tensor.array.flat))


def _flat(data: list[Any], shape: tuple[int, ...], field: str) -> list[Any]:
    """Take the nesting apart, level by level, where there is one: it is what the shape says."""
    if not data or type(data[0]) is not list:
        return data
    if not shape or len(data) != shape[0]:
        raise Invalid.field(field, "is nested in another way than the shape says")
    for length in shape[1:]:
        if any(type(each) is not list or len(each) != length for each in data):
            raise Invalid.field(field, "is nested in another way than the shape says")
        data = list(chain.from_iterable(data))
    return data


def _split(raw: memoryview, count: int, field: str) -> list[bytes]:
    elements, at = [], 0
    for _ in range(count):
        if len(raw) - at < _LENGTH.size:
            raise Invalid.field(field, "ends within the length of an element")
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(raw, at)[0]
        elements.append(bytes(raw[begin:at]))
    if at != len(raw):
        raise Invalid.field(field, f"has {len(raw)} bytes, its elements say {at}")
    return elements


def _objects(elements: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    """An array of these; numpy would take bytes of one length for something else, and cut their zeros."""
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)
