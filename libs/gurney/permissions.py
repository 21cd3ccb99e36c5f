"""Who may say and hear what at the NATS server, derived from the tables of subjects and streams. Pure.

A user may ask what its service asks, answer what it answers, publish its own subjects, and of JetStream's interface use
what its own streams and consumers need; it hears its own inbox. Whatever is not listed is denied by the server.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gurney.streams import CONSUMERS, READERS, STREAMS, Consumer, agent_runs
from gurney.subjects import AGENT, NOTICES, OPERATIONS, SUBJECTS, Subject

#: Every service of the tables but the agents, of which each host has its own.
SERVICES = tuple(
    sorted({o.service for o in OPERATIONS} | {asker for o in OPERATIONS for asker in o.askers if asker != AGENT})
)
#: What integrators may hear.
INTEGRATOR_HEARS = ("job.>", "map.>", "payload.>")

_PLACE = re.compile(r"\{(\w+)\}")
_JS = "$JS.API"


@dataclass(frozen=True)
class Permissions:
    """What one user may do. Subjects may have wildcards; what is denied is denied although it is allowed."""

    user: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    deny_publish: tuple[str, ...] = ()
    #: May answer what it was asked, on the inbox of whoever asked.
    answers: bool = False


def user_of(service: str, node: str) -> str:
    """Return the NATS user of a service; each agent has its own."""
    return f"{AGENT}-{node}" if service == AGENT else service


def of_service(service: str) -> Permissions:
    """Return what a service may do."""
    consumers = [each for each in CONSUMERS if each.service == service]
    asks = [o.subject for o in OPERATIONS if service in o.askers]
    tells = [_filled(each) for each in SUBJECTS if each.publisher == service]
    notices = [each.subject for each in NOTICES if each.service == service]
    publish = [*asks, *tells, *notices, f"$SRV.PING.gurney-{service}", *_declaring(service), *_reading(service)]
    for consumer in consumers:
        publish += [_creating(consumer), *_consuming(consumer)]
    if agent_runs("*").maker == service:
        publish += _making(agent_runs("*"))
    return Permissions(
        user=service,
        publish=_once(publish),
        subscribe=_once([f"_INBOX_{service}.>", *_answering(service), *_hearing(service), *notices]),
        deny_publish=_once(_not_its_own(service)),
        answers=any(operation.service == service for operation in OPERATIONS),
    )


def of_agent(node: str) -> Permissions:
    """Return what the agent of a node may do: under its node's name alone, so that none can speak for another."""
    user = user_of(AGENT, node)
    runs = agent_runs(node)
    publish = [o.asked_by(node) for o in OPERATIONS if AGENT in o.askers]
    publish += [_filled(each, node) for each in SUBJECTS if each.publisher == AGENT]
    for reader in READERS:
        if reader.service == AGENT and reader.own:
            publish += [f"{_JS}.DIRECT.GET.{reader.stream}.{subject}" for subject in _told(reader.stream, node)]
    publish += [f"{_JS}.CONSUMER.INFO.{runs.stream}.{runs.durable}", *_consuming(runs), f"$SRV.PING.gurney-{AGENT}"]
    return Permissions(user=user, publish=_once(publish), subscribe=(f"_INBOX_{user}.>",))


def integrator() -> Permissions:
    """Return what another system may do that follows what happens."""
    return Permissions(user="integrator", publish=(), subscribe=INTEGRATOR_HEARS)


def operator() -> Permissions:
    """Return what a person may do who looks after the server: everything."""
    return Permissions(user="operator", publish=(">",), subscribe=(">",), answers=True)


def everybody(agents: Iterable[str], *, with_operator: bool = False) -> list[Permissions]:
    """Return all users of a deployment."""
    users = [*map(of_service, SERVICES), *map(of_agent, sorted(set(agents))), integrator()]
    return [*users, operator()] if with_operator else users


def rendered(users: Iterable[Permissions], passwords: Mapping[str, str]) -> str:
    """Return the configuration of nats-server that lets in these users and nobody else."""
    blocks = "\n".join(_block(user, passwords[user.user]) for user in users)
    return f"# Made by `gurney credentials`: change nothing here.\nauthorization {{\n  users = [\n{blocks}\n  ]\n}}\n"


def _block(user: Permissions, password: str) -> str:
    publish = {"allow": user.publish} if user.publish else {"deny": (">",)}
    if user.publish and user.deny_publish:
        publish |= {"deny": user.deny_publish}
    lines = [
        f"      publish: {json.dumps(publish)}",
        f"      subscribe: {json.dumps({'allow': user.subscribe})}",
    ]
    if user.answers:
        lines.append("      allow_responses: true")
    permissions = "\n".join(lines)
    return (
        f"    {{ user: {json.dumps(user.user)}, password: {json.dumps(password)}, permissions: {{\n"
        f"{permissions}\n    }} }}"
    )


def _filled(subject: Subject, node: str = "*") -> str:
    """Return a subject with wildcards for what is filled in."""
    return _PLACE.sub(lambda place: node if place[1] == "node_id" else "*", subject.template)


def _told(stream: str, node: str) -> list[str]:
    return [_filled(each, node) for each in SUBJECTS if each.stream == stream and each.publisher == AGENT]


def _answering(service: str) -> list[str]:
    own = [operation for operation in OPERATIONS if operation.service == service]
    subjects = [operation.subject for operation in own]
    subjects += [operation.asked_by("*") for operation in own if AGENT in operation.askers]
    if own:  # discovery, by the services protocol of NATS
        for verb in ("PING", "INFO", "STATS"):
            subjects += [f"$SRV.{verb}", f"$SRV.{verb}.gurney-{service}", f"$SRV.{verb}.gurney-{service}.*"]
    return subjects


def _hearing(service: str) -> list[str]:
    return [_filled(each) for each in SUBJECTS if service in each.live]


def _declaring(service: str) -> list[str]:
    own = [stream.name for stream in STREAMS if stream.declarer == service]
    return [f"{_JS}.STREAM.{verb}.{name}" for name in own for verb in ("CREATE", "UPDATE")]


def _reading(service: str) -> list[str]:
    """Return what looking into streams needs. Who follows one makes consumers whose names the server chooses."""
    subjects = []
    for reader in READERS:
        if reader.service == service and not reader.own:
            subjects += [f"{_JS}.STREAM.INFO.{reader.stream}", f"{_JS}.STREAM.MSG.GET.{reader.stream}"]
        if reader.service == service and reader.follows:
            verbs = (f"CREATE.{reader.stream}", f"DELETE.{reader.stream}.*", f"MSG.NEXT.{reader.stream}.*")
            subjects += [f"{_JS}.CONSUMER.{verb}" for verb in verbs]
    return subjects


def _not_its_own(service: str) -> list[str]:
    """Return what following a stream would allow, and what belongs to those who consume it."""
    followed = {reader.stream for reader in READERS if reader.service == service and reader.follows}
    others = [each for each in CONSUMERS if each.stream in followed and each.service != service]
    return [f"{_JS}.CONSUMER.{verb}.{each.stream}.{each.durable}" for each in others for verb in ("DELETE", "MSG.NEXT")]


def _creating(consumer: Consumer) -> str:
    return f"{_JS}.CONSUMER.CREATE.{consumer.stream}.{consumer.durable}.{consumer.filter}"


def _consuming(consumer: Consumer) -> list[str]:
    return [
        f"{_JS}.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.durable}",
        f"$JS.ACK.{consumer.stream}.{consumer.durable}.>",
        f"dead.{consumer.stream}.{consumer.durable}",
    ]


def _making(consumer: Consumer) -> list[str]:
    """Return what it takes to make another service's consumers, and to end them. A wildcard is a whole token."""
    every = replace(consumer, durable="*")
    verbs = ("INFO", "DELETE")
    return [_creating(every), *(f"{_JS}.CONSUMER.{verb}.{every.stream}.{every.durable}" for verb in verbs)]


def _once(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(subjects)))
