"""A real mongod for tests: a replica set of one on a free loopback port, ready when it is primary, gone with its owner.

Methods block: call them off the loop.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure

from gurney.testing.child import Child, free_port
from gurney.testing.tools import tool

READY_WITHIN_S = 30.0
REPLICA_SET = "rs0"
#: What `replSetInitiate` answers where it was done before.
ALREADY_INITIALIZED = 23


class MongoServer:
    """One mongod over one folder; it keeps its port and its documents from start to start."""

    def __init__(self, folder: Path, *, user: str | None = None, password: str = "") -> None:
        """Prepare a server whose files all lie in `folder`; with a `user`, only he may read and write."""
        self.folder = folder
        self.user = user
        self.password = password
        self.port: int | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Where clients connect, credentials included; known after the first start."""
        return self.url_as(self.user, self.password)

    def url_as(self, user: str | None, password: str = "") -> str:
        """Return the URL for somebody else."""
        who = f"{user}:{password}@" if user else ""
        return f"mongodb://{who}127.0.0.1:{self.port}/?replicaSet={REPLICA_SET}"

    @property
    def pid(self) -> int:
        return self._running.pid

    def start(self) -> Self:
        """Start the server and return when it takes writes."""
        binary = tool("mongod")
        if binary is None:
            raise FileNotFoundError("mongod: scripts/tools mongod provides it")
        data = self.folder / "db"
        data.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        self._child = Child(self._command(binary, data), self.folder / "mongod.log").start()
        self._child.until(self._is_primary, READY_WITHIN_S)
        return self

    def stop(self) -> None:
        """End the server in order; nothing happens when it is not there."""
        if self._child:
            self._child.stop()

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash does."""
        self._running.kill()

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing answers once this returns."""
        self._running.pause()

    def resume(self) -> None:
        """Let a paused server go on."""
        self._running.resume()

    def client(self) -> "MongoClient[dict[str, Any]]":
        """Return a client of the running server, for tests that look behind the port."""
        return MongoClient(self.url, serverSelectionTimeoutMS=5000)

    def drop(self, database: str) -> None:
        """Drop a database of the running server."""
        with self.client() as client:
            client.drop_database(database)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError("the server is not running")
        return self._child

    def _command(self, binary: Path, data: Path) -> list[str | Path]:
        command: list[str | Path] = [binary, "--dbpath", data, "--bind_ip", "127.0.0.1", "--port", str(self.port)]
        command += ["--replSet", REPLICA_SET, "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64", "--quiet"]
        command += ["--nounixsocket", "--setParameter", "diagnosticDataCollectionEnabled=false"]
        command += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"]
        if self.user:
            key = self.folder / "key"
            if not key.exists():
                key.write_text("c2VjcmV0IG9mIHRoZSByZXBsaWNhIHNldA==")
                key.chmod(0o600)
            command += ["--keyFile", key]
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
