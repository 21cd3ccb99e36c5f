"""An event on its way out: kept beside the document that it tells of until JetStream has it."""

from typing import Any

from gurney.model.base import Message, Timestamp


class Event(Message):
    """Becomes one JetStream message with CloudEvents 1.0 attributes in its headers (`ce-*`)."""

    #: `ce-id` and `Nats-Msg-Id`.
    id: str
    subject: str
    #: `ce-source`: the service that publishes.
    source: str
    at: Timestamp
    #: W3C trace context of what caused it.
    traceparent: str | None = None
    #: JSON.
    body: str

    @property
    def type(self) -> str:
        """The `ce-type`: the subject's first two tokens."""
        return ".".join(self.subject.split(".")[:2])


#: Version of the messages' schema, in the header `gurney-schema`.
SCHEMA = "1"


def event_of(subject: str, data: Message, *, id: str, source: str, at: Any, traceparent: str | None = None) -> Event:  # noqa: A002
    """Return the event that carries `data`."""
    return Event(id=id, subject=subject, source=source, at=at, traceparent=traceparent, body=data.model_dump_json())
