"""The tables of the documentation, made from the code by cog: `scripts/docs` writes them, a test holds them current."""

from collections.abc import Iterable, Sequence

from pydantic_settings import BaseSettings

from gurney.errors import GurneyError
from gurney.settings import Settings
from gurney.streams import STREAMS
from gurney.subjects import NOTICES, OPERATIONS, SUBJECTS
from services.edge.routes import ROUTES
from services.inference_server.settings import PREFIX, InferenceServerSettings
from services.job.machine import TRANSITIONS


def subjects() -> str:
    """Subjects of streams."""
    rows = [
        (f"`{s.template}`", s.stream, s.publisher, ", ".join(s.consumers), f"`{s.payload.__name__}`") for s in SUBJECTS
    ]
    return table(("subject", "stream", "publisher", "consumers", "payload"), rows)


def operations() -> str:
    """Questions and answers."""
    rows = [
        (f"`{o.subject}`", ", ".join(o.askers), f"`{o.request.__name__}`", f"`{o.reply.__name__}`") for o in OPERATIONS
    ]
    return table(("subject", "asked by", "question", "answer"), rows)


def notices() -> str:
    """What a service tells its own replicas."""
    return table(("subject", "between"), [(f"`{each.subject}`", f"replicas of {each.service}") for each in NOTICES])


def streams() -> str:
    """Streams and who declares them."""
    settings = Settings.model_construct()
    rows = []
    for stream in STREAMS:
        config = stream.config(settings)
        kind = config.retention.value if config.retention else ""
        rows.append((stream.name, stream.declarer, kind, ", ".join(f"`{each}`" for each in config.subjects or ())))
    return table(("stream", "declared by", "retention", "subjects"), rows)


def routes() -> str:
    """Routes of the REST API."""
    rows = [
        (
            f"`{route.method} {route.path}`",
            ", ".join(sorted(role.value for role in route.roles)) or "no token",
            route.summary,
            str(route.status),
        )
        for route in ROUTES
    ]
    return table(("route", "roles", "does", "success"), rows)


def errors() -> str:
    """Codes of problem documents."""
    rows = [(f"`{kind.code}`", str(kind.status), "yes" if kind.retryable else "no", kind.title) for kind in _tree()]
    return table(("code", "status", "a retry may help", "means"), sorted(set(rows)))


def settings() -> str:
    """Settings by their environment variables."""
    return _settings(Settings, "GURNEY_")


def inference_server_settings() -> str:
    """Settings of the façade for InferenceServer's clients."""
    return _settings(InferenceServerSettings, PREFIX)


def _settings(kind: type[BaseSettings], prefix: str) -> str:
    rows = []
    for name, field in kind.model_fields.items():
        default = "" if field.default_factory or field.is_required() else f"`{_default(field.default)}`"
        meaning = " ".join((field.description or "").split())
        rows.append((f"`{prefix}{name.upper()}`", "" if "secret" in name else default, meaning))
    return table(("variable", "default", "meaning"), rows)


def _default(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, tuple) else getattr(value, "value", value)


def job_states() -> str:
    """Transitions of a job."""
    rows = [
        (state.value, event.__name__, " or ".join(each.value for each in then) or "stays")
        for (state, event), then in TRANSITIONS.items()
    ]
    return table(("state", "event", "then"), sorted(rows))


def job_diagram() -> str:
    """Mermaid's state diagram of a job."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), then in TRANSITIONS.items():
        for after in then:
            if after != state:
                arrows.setdefault((state.value, after.value), []).append(event.__name__)
    lines = [f"    {a} --> {b}: {', '.join(sorted(events))}" for (a, b), events in sorted(arrows.items())]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> requested", *lines, "```"])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def _tree(root: type[GurneyError] = GurneyError) -> Iterable[type[GurneyError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)
