"""The AsyncAPI 3 document, made of the table of subjects: for integrators who subscribe to `job.>` and its like."""

import re
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from gurney.model.base import Message
from gurney.subjects import (
    JOB_EVENTS,
    MAP_EVENTS,
    NODE_EVENTS,
    OPERATIONS,
    PAYLOAD_EVENTS,
    SUBJECTS,
    Operation,
    Subject,
)

Json = dict[str, Any]

REF = "#/components/schemas/"

EVENTS = {"job": JOB_EVENTS, "map": MAP_EVENTS, "payload": PAYLOAD_EVENTS, "node": NODE_EVENTS}

HEADERS: Json = {
    "type": "object",
    "description": "CloudEvents 1.0 attributes, and the W3C trace context.",
    "properties": {
        name: {"type": "string"}
        for name in ("ce-id", "ce-type", "ce-source", "ce-time", "ce-subject", "gurney-schema", "traceparent")
    },
}


def document() -> Json:
    """Return the document."""
    payloads = {each.payload for each in SUBJECTS} | {
        kind for each in OPERATIONS for kind in (each.request, each.reply)
    }
    ordered = sorted(payloads, key=lambda kind: kind.__name__)
    refs, found = models_json_schema([(kind, "serialization") for kind in ordered], ref_template=f"{REF}{{model}}")
    schemas = {kind: refs[kind, "serialization"] for kind in ordered}
    channels: Json = {}
    operations: Json = {}
    for subject in SUBJECTS:
        channels[_key(subject.template)] = _channel(subject, schemas)
        operations[f"send.{_key(subject.template)}"] = _sending(subject)
    for operation in OPERATIONS:
        channels |= _question(operation, schemas)
        operations[operation.subject] = _answering(operation)
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Gurney", "version": version("gurney"), "license": {"name": "Apache-2.0"}},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": found["$defs"]},
    }


def _key(template: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "", template)


def _channel(subject: Subject, schemas: dict[type[Message], Json]) -> Json:
    noun = subject.template.partition(".")[0]
    return {
        "address": subject.template,
        "description": f"JetStream stream {subject.stream}.",
        "parameters": {name: _parameter(name, noun) for name in re.findall(r"\{(\w+)\}", subject.template)},
        "messages": {subject.payload.__name__: {"headers": HEADERS, "payload": schemas[subject.payload]}},
    }


def _parameter(name: str, noun: str) -> Json:
    return {"enum": list(EVENTS[noun])} if name == "event" and noun in EVENTS else {"description": f"{name}."}


def _sending(subject: Subject) -> Json:
    channel = f"#/channels/{_key(subject.template)}"
    return {
        "action": "send",
        "summary": f"{subject.publisher} tells {', '.join(subject.consumers)}.",
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{subject.payload.__name__}"}],
    }


def _question(operation: Operation[Any, Any], schemas: dict[type[Message], Json]) -> Json:
    reply = {"address": None, "messages": {"reply": {"payload": schemas[operation.reply]}}}
    asked = {"address": operation.subject, "messages": {"request": {"payload": schemas[operation.request]}}}
    return {operation.subject: asked, f"{operation.subject}.reply": reply}


def _answering(operation: Operation[Any, Any]) -> Json:
    channel = f"#/channels/{operation.subject}"
    return {
        "action": "receive",
        "summary": f"{operation.service} answers {', '.join(operation.askers)}.",
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/request"}],
        "reply": {
            "address": {"location": "$message.header#/reply"},
            "channel": {"$ref": f"{channel}.reply"},
            "messages": [{"$ref": f"{channel}.reply/messages/reply"}],
        },
    }
