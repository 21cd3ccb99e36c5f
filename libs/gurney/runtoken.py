"""Tokens of runs: what lets an agent read one run's input and write its results and log, and nothing else.

A token is `<run id>.<payload id>.<keyed BLAKE2b of the two>` (RFC 7693, 2.9). The scheduler makes it when it places the
run, the payload service checks it; both know `settings.run_secret`. Whether the run is still the current attempt is not
its matter: the payload service binds results of one run per job only.
"""

import hmac
from dataclasses import dataclass
from hashlib import blake2b

from gurney.errors import Forbidden
from gurney.ids import split_run_id


@dataclass(frozen=True, slots=True)
class RunGrant:
    """What a valid token allows."""

    run_id: str
    job_id: str
    attempt: int
    #: Payload id of the input.
    payload: str


def mint(secret: str, run_id: str, payload: str) -> str:
    """Return the token of a run."""
    return f"{run_id}.{payload}.{_signature(secret, run_id, payload)}"


def verify(secret: str, token: str) -> RunGrant:
    """Return what the token allows; raises `Forbidden` where it is none of ours."""
    run_id, _, rest = token.partition(".")
    payload, _, signature = rest.partition(".")
    if not hmac.compare_digest(signature, _signature(secret, run_id, payload)):
        raise Forbidden("the token of this run is not valid")
    job_id, attempt = split_run_id(run_id)
    return RunGrant(run_id, job_id, attempt, payload)


def _signature(secret: str, run_id: str, payload: str) -> str:
    if not secret:
        raise Forbidden("GURNEY_RUN_SECRET is not set")
    return blake2b(f"{run_id}.{payload}".encode(), key=secret.encode()[:64], digest_size=32).hexdigest()
