"""A real versitygw for tests, the second S3 server: what MinIO alone can do is not to be relied on."""

from pathlib import Path

from gurney.testing.child import free_port
from gurney.testing.s3 import ACCESS_KEY, SECRET_KEY, S3Server


def versitygw(folder: Path, *, port: int | None = None) -> S3Server:
    """Return a versitygw over this folder, not started yet."""
    port = port or free_port()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{port}"
    command: list[str | Path] = ["versitygw", "--port", address, "--health", "/health", "--quiet", "posix", data]
    environment = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    return S3Server(folder, command, environment, port, "/health")
