# ruff: noqa: INP001  a script of its own
"""Makes MongoDB's replica set of one and its users, where they are not yet there.

Runs beside the server, on its loopback address, where MongoDB lets the first user be made without one. Whatever it was
killed at, the next time makes the rest.
"""

import sys
import time
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

NAME = "gurney"
MEMBER = "mongo:27017"
WITHIN_S = 60.0
SECRETS = Path("/run/secrets")
NOT_AUTHENTICATED = 18
UNAUTHORIZED = 13
ALREADY_INITIALIZED = 23

Client = MongoClient[dict[str, Any]]


def client(user: str | None = None) -> Client:
    """Return a connection to this host's server and no other, as nobody or as one of the two users."""
    login: dict[str, Any] = {"username": user, "password": secret(user)} if user else {}
    return MongoClient("127.0.0.1", 27017, directConnection=True, serverSelectionTimeoutMS=5000, **login)


def secret(user: str) -> str:
    return (SECRETS / f"mongo-{user}").read_text("utf-8").strip()


def primary(nobody: Client) -> bool:
    """Return whether the server takes writes; make the replica set where there is none."""
    hello = nobody.admin.command("hello")
    if hello.get("isreplicaset"):  # meant for one, and not yet in one
        try:
            nobody.admin.command("replSetInitiate", {"_id": NAME, "members": [{"_id": 0, "host": MEMBER}]})
        except OperationFailure as error:
            if error.code != ALREADY_INITIALIZED:
                raise
    return bool(hello.get("isWritablePrimary"))


def may_enter(user: str) -> bool:
    with client(user) as one:
        try:
            one.admin.command("ping")
        except OperationFailure as error:
            if error.code in {NOT_AUTHENTICATED, UNAUTHORIZED}:
                return False
            raise
    return True


def make_users() -> None:
    """Make the administrator by the exception for the first user, and by him the user of the services."""
    if may_enter("gurney"):
        return
    if not may_enter("root"):
        with client() as nobody:
            nobody.admin.command("createUser", "root", pwd=secret("root"), roles=["root"])
    with client("root") as root:
        known = root.admin.command("usersInfo", "gurney")["users"]
        change = "updateUser" if known else "createUser"
        root.admin.command(change, "gurney", pwd=secret("gurney"), roles=[{"role": "readWrite", "db": NAME}])


def main() -> int:
    until = time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        try:
            with client() as nobody:
                if primary(nobody):
                    make_users()
                    return 0
        except ServerSelectionTimeoutError as error:  # a server that started again has another loopback address: anew
            sys.stderr.write(f"mongo-init: {str(error).partition(' (')[0]}\n")
            return 1
        except PyMongoError as error:
            sys.stderr.write(f"mongo-init: {error}\n")
        time.sleep(0.2)
    sys.stderr.write(f"mongo-init: MongoDB was not ready within {WITHIN_S:.0f} s\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
