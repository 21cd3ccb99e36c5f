"""Ids and secrets: the only place that makes them up.

An id is a prefix that names the kind and a ULID (https://github.com/ulid/spec) in lower case, so that ids sort by the
time they were made and fit subjects, file names and container names alike.
"""

import hashlib
import random
import re
import secrets
from typing import Literal, get_args

from ulid import ULID

Kind = Literal["map", "pay", "job", "hdl", "dlv", "evt", "tok", "upl", "ins"]

KINDS: tuple[str, ...] = get_args(Kind)
_PATTERN = re.compile(rf"(?:{'|'.join(KINDS)})_[0-9a-hjkmnp-tv-z]{{26}}")


def new_id(kind: Kind) -> str:
    """Return a fresh id, for example `job_01k...`."""
    return f"{kind}_{str(ULID()).lower()}"


def is_id(text: str, kind: Kind | None = None) -> bool:
    """Tell whether `text` has the form of an id (of this kind)."""
    return _PATTERN.fullmatch(text) is not None and (kind is None or text.startswith(f"{kind}_"))


def looks_like_id(text: str) -> bool:
    """Tell whether `text` starts as an id does: names may not."""
    return text.startswith(tuple(f"{kind}_" for kind in KINDS))


def run_id(job_id: str, attempt: int) -> str:
    """Return the id that fences every report, log and upload of one attempt."""
    return f"{job_id}-{attempt}"


def split_run_id(run: str) -> tuple[str, int]:
    """Return job id and attempt of a run id; ValueError where it is none."""
    job, _, attempt = run.rpartition("-")
    if not is_id(job, "job") or not attempt.isdecimal():
        raise ValueError(f"not a run id: {run!r}")
    return job, int(attempt)


def job_event_id(job_id: str, attempt: int, event: str) -> str:
    """Return the id of a job's event: whoever makes the event up again gives it the same one."""
    return f"evt_{job_id.removeprefix('job_')}-{attempt}-{event}"


def job_of_event(event_id: str) -> str | None:
    """Return the job of whose event this is the id, as `job_event_id` makes it."""
    ulid, dash, _ = event_id.removeprefix("evt_").partition("-")
    return f"job_{ulid}" if dash else None


def new_secret() -> str:
    """Return 256 bits of chance, URL-safe."""
    return secrets.token_urlsafe(32)


def new_asker() -> str:
    """Return a name for somebody who asks, that no other process has."""
    return secrets.token_hex(6)


def new_traceparent() -> str:
    """Return a fresh W3C trace context that is not recorded."""
    return f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-00"


def digest_of(secret: str) -> str:
    """Return what is kept of a secret: its SHA-256 in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()
