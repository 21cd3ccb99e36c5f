"""A real S3 server for tests, whichever: started, paused, killed, started again, and gone with its owner."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from gurney.ids import new_id
from gurney.testing.child import LOOPBACK, Child, answers
from gurney.testing.tools import provided

ACCESS_KEY, SECRET_KEY = "gurney", "a secret for tests"
READY_WITHIN_S = 30.0


def a_bucket() -> str:
    """Return the name of a bucket that nobody has."""
    return new_id("evt").replace("_", "-").lower()


class S3Server(Child):
    """One server over one folder; it keeps its port and its objects from start to start. Methods block."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        port: int,
        health: str,
        *,
        host: str = LOOPBACK,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        program = provided(str(command[0]))
        super().__init__([program, *command[1:]], folder / f"{program.name}.log", environment)
        self.host, self.port = host, port
        self._health = health

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> Self:
        """Start the server and return when it answers."""
        return super().start().until(lambda: answers(f"{self.url}{self._health}"), READY_WITHIN_S)

    def clean(self) -> None:
        """Forget everything; the server must be stopped."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def settings(self, bucket: str = "gurney") -> dict[str, Any]:
        """Return the settings that keep objects here."""
        return {
            "s3_url": self.url,
            "s3_bucket": bucket,
            "s3_access_key": ACCESS_KEY,
            "s3_secret_key": SECRET_KEY,
        }
