"""Secrets as files of one folder: a password for each NATS user, the server's list of users, and what services share.

`nats_<user>` holds a password, `gurney_<setting>` a setting. What is there stays: a second call adds what is missing.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import SecretStr

from gurney import permissions
from gurney.errors import Invalid
from gurney.ids import new_secret
from gurney.model.access import Role
from gurney.settings import SECRETS_DIR, Settings
from gurney.subjects import AGENT

#: The part of nats-server's configuration that says who may come in.
USERS = "nats-users.conf"
#: Settings that are secrets, those of façades too, with what begins them.
SHARED = {
    "gurney_run_secret": "",
    "gurney_admin_token": "gurney_",
    "gurney_inference_server_token": "gurney_",
    "gurney_mis_token": "gurney_",
}

_PREFIX = "nats_"
_AGENT_PREFIX = f"{_PREFIX}{AGENT}-"


def password_file(user: str) -> str:
    """Return the name of the file of a NATS user's password."""
    return f"{_PREFIX}{user}"


def signed_on(settings: Settings, service: str) -> Settings:
    """Return the settings with a service's own NATS user, where the folder of secrets has one and no setting does."""
    if settings.nats_user or settings.secrets_dir is None:
        return settings
    user = permissions.user_of(service, settings.node)
    password = _read(settings.secrets_dir / password_file(user))
    if password is None:
        return settings
    return settings.model_copy(update={"nats_user": user, "nats_password": SecretStr(password)})


def client_tokens(settings: Settings) -> dict[str, tuple[str, Role]]:
    """Return the tokens that the edge is to know, by their subjects; raises `Invalid` where one is missing."""
    found = {}
    for subject, role in settings.client_tokens.items():
        name = f"gurney_{subject.replace('-', '_')}_token"
        secret = _read(settings.secrets_dir / name) if settings.secrets_dir else None
        if not secret:
            raise Invalid.field("client_tokens", f"{SECRETS_DIR} has no file {name} with the token of {subject}")
        found[subject] = secret, role
    return found


def generate(folder: Path, agents: Iterable[str] = (), *, with_operator: bool = False) -> list[str]:
    """Make what is missing in a folder of secrets, closed to others; returns its NATS users."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = {path.name.removeprefix(_AGENT_PREFIX) for path in folder.glob(f"{_AGENT_PREFIX}*")}
    with_operator = with_operator or (folder / password_file("operator")).exists()
    users = permissions.everybody(known | set(agents), with_operator=with_operator)
    passwords = {each.user: _kept(folder / password_file(each.user)) for each in users}
    for name, prefix in SHARED.items():
        _kept(folder / name, prefix)
    _write(folder / USERS, permissions.rendered(users, passwords))
    return [each.user for each in users]


def _kept(path: Path, prefix: str = "") -> str:
    """Return the secret that a file holds; one is made where there is no file."""
    found = _read(path)
    if found is None:
        found = prefix + new_secret()
        _write(path, f"{found}\n")
    elif not found:
        raise Invalid(f"{path} is empty: remove it to have it made anew")
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
