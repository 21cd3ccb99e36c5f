"""Spans as OTLP, in protobuf (opentelemetry/proto/trace/v1/trace.proto), written by hand because of what it costs.

A job makes some fifty spans on its way through the whole server, and the SDK's way takes 47 us of the processor for
each (`docs/adr/0007-spans-are-written-by-hand.md`). Here a span is written when it ends, in some 4 us, and a batch is
joined.
"""

import os
import socket
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from gurney.traceparent import span_of, trace_of

Value = str | int
Attributes = Iterable[tuple[str, Value]]

_TIMES = struct.Struct("<BQBQ")
_ERROR = b"\x7a\x02\x18\x02"  # status: {code: ERROR}


@lru_cache(4096)
def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004  # seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return b"%b%b%b" % (_varint(number << 3 | 2), _varint(len(data)), data)


def _key_value(key: str, value: Value) -> bytes:
    written = _field(1, value.encode()) if isinstance(value, str) else b"\x18" + _varint(value & (1 << 64) - 1)
    return _field(1, key.encode()) + _field(2, written)


@lru_cache(8192)  # the ids of a job come on all its spans
def _attribute(key: str, value: Value) -> bytes:
    return _field(9, _key_value(key, value))


@lru_cache(4096)
def _name(name: str, kind: int) -> bytes:
    return _field(5, name.encode()) + b"\x30" + _varint(kind)


def encode(
    traceparent: str,
    parent: str,
    *,
    name: str,
    kind: int,
    times: tuple[int, int],
    attributes: Attributes,
    links: Sequence[str] = (),
    failed: bool = False,
) -> bytes:
    """Return a span, ready to be joined to others. `parent` is a span id in hexadecimal, empty for a root."""
    above = f"2208{parent}" if parent else ""
    body = (
        bytes.fromhex(f"0a10{trace_of(traceparent)}1208{span_of(traceparent)}{above}")
        + _name(name, kind)
        + _TIMES.pack(0x39, times[0], 0x41, times[1])
        + b"".join([_attribute(key, value) for key, value in attributes])
    )
    if links:
        body += b"".join([_link(each) for each in links])
    if failed:
        body += _ERROR
    return b"\x12" + _varint(len(body)) + body


def _link(traceparent: str) -> bytes:
    return _field(13, bytes.fromhex(f"0a10{trace_of(traceparent)}1208{span_of(traceparent)}"))


@lru_cache(64)
def _resource(service: str) -> bytes:
    instance = f"{socket.gethostname()}-{os.getpid()}"
    told = (("service.name", service), ("service.namespace", "gurney"), ("service.instance.id", instance))
    return _field(1, b"".join(_field(1, _key_value(key, value)) for key, value in told))


_SCOPE = _field(1, _field(1, b"gurney"))


def request_of(spans: Iterable[tuple[str, bytes]]) -> bytes:
    """Return an ExportTraceServiceRequest of (service, span): one resource for each service."""
    by_service: dict[str, list[bytes]] = {}
    for service, span in spans:
        by_service.setdefault(service, [_SCOPE]).append(span)
    return b"".join(
        _field(1, _resource(service) + _field(2, b"".join(written))) for service, written in by_service.items()
    )
