"""A real MinIO for tests: on a free loopback port over one folder, ready within a second, gone with its owner."""

from pathlib import Path

from gurney.testing.child import LOOPBACK, free_port
from gurney.testing.s3 import ACCESS_KEY, SECRET_KEY, S3Server


def minio(folder: Path, *, port: int | None = None, host: str = LOOPBACK) -> S3Server:
    """Return a MinIO over this folder, not started yet."""
    port = port or free_port()
    command: list[str | Path] = ["minio", "server", "--quiet", "--address", f"{host}:{port}", folder / "data"]
    environment = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "MINIO_BROWSER": "off"}
    return S3Server(folder, command, environment, port, "/minio/health/ready", host=host)
