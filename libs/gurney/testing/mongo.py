"""A real mongod for tests: a replica set of one on a free loopback port, ready when it is primary, gone with its owner.

Methods block: call them off the loop.
"""

from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure

from gurney.testing.child import Child, free_port
from gurney.testing.tools import provided

READY_WITHIN_S = 30.0
REPLICA_SET = "rs0"
#: What `replSetInitiate` answers where it was done before.
ALREADY_INITIALIZED = 23


class MongoServer(Child):
    """One mongod over one folder; it keeps its port and its documents from start to start."""

    def __init__(self, folder: Path, *, user: str | None = None, password: str = "") -> None:
        """Prepare a server whose files all lie in `folder`; with a `user`, only he may read and write."""
        self.folder = folder
        self.user = user
        self.password = password
        self.port = free_port()
        super().__init__(self._command(), folder / "mongod.log")

    @property
    def url(self) -> str:
        """Where clients connect, credentials included."""
        return self.url_as(self.user, self.password)

    def url_as(self, user: str | None, password: str = "") -> str:
        """Return the URL for somebody else."""
        who = f"{user}:{password}@" if user else ""
        return f"mongodb://{who}127.0.0.1:{self.port}/?replicaSet={REPLICA_SET}"

    def start(self) -> Self:
        """Start the server and return when it takes writes."""
        (self.folder / "db").mkdir(parents=True, exist_ok=True)
        if self.user and not self._key.exists():
            self._key.write_text("c2VjcmV0IG9mIHRoZSByZXBsaWNhIHNldA==")
            self._key.chmod(0o600)
        return super().start().until(self._is_primary, READY_WITHIN_S)

    def client(self) -> "MongoClient[dict[str, Any]]":
        """Return a client of the running server, for tests that look behind the port."""
        return MongoClient(self.url, serverSelectionTimeoutMS=5000)

    def drop(self, database: str) -> None:
        """Drop a database of the running server."""
        with self.client() as client:
            client.drop_database(database)

    @property
    def _key(self) -> Path:
        return self.folder / "key"

    def _command(self) -> list[str | Path]:
        command: list[str | Path] = [
            provided("mongod"),
            "--dbpath",
            self.folder / "db",
            "--bind_ip",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        command += ["--replSet", REPLICA_SET, "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64", "--quiet"]
        command += ["--nounixsocket", "--setParameter", "diagnosticDataCollectionEnabled=false"]
        command += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"]
        if self.user:
            command += ["--keyFile", self._key]
        return command

    def _is_primary(self) -> bool:
        direct = f"mongodb://127.0.0.1:{self.port}/?directConnection=true"
        try:
            with MongoClient[dict[str, Any]](direct, serverSelectionTimeoutMS=200) as client:
                if not client.admin.command("hello").get("isWritablePrimary"):
                    self._initiate(client)
                    return False
                return self._has_user(client)
        except ConnectionFailure:
            return False

    def _initiate(self, client: "MongoClient[dict[str, Any]]") -> None:
        members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
        try:
            client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
        except OperationFailure as error:  # with a user, only the first start may
            if error.code != ALREADY_INITIALIZED and not self._knows_user():
                raise

    def _has_user(self, client: "MongoClient[dict[str, Any]]") -> bool:
        if self.user and not self._knows_user():
            client.admin.command("createUser", self.user, pwd=self.password, roles=["root"])
        return True

    def _knows_user(self) -> bool:
        direct = f"mongodb://{self.user}:{self.password}@127.0.0.1:{self.port}/?directConnection=true"
        try:
            with MongoClient[dict[str, Any]](direct, serverSelectionTimeoutMS=200) as client:
                client.admin.command("ping")
        except OperationFailure:
            return False
        return True
