"""A real S3 server for tests, whichever: started, paused, killed, started again, and gone with its owner."""

import http.client
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from gurney.ids import new_id
from gurney.testing.child import Child
from gurney.testing.tools import tool

ACCESS_KEY, SECRET_KEY = "gurney", "a secret for tests"
READY_WITHIN_S = 30.0


def a_bucket() -> str:
    """Return the name of a bucket that nobody has."""
    return new_id("evt").replace("_", "-").lower()


class S3Server:
    """One server over one folder; it keeps its port and its objects from start to start. Methods block."""

    def __init__(
        self, folder: Path, command: Sequence[str | Path], environment: Mapping[str, str], port: int, health: str
    ) -> None:
        program = tool(str(command[0]))
        if program is None:
            raise FileNotFoundError(f"{command[0]}: scripts/tools {command[0]} provides it")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.child = Child([program, *command[1:]], folder / f"{command[0]}.log", environment)
        self.port = port
        self._health = health

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start the server and return when it answers."""
        self.child.start().until(self._answers, READY_WITHIN_S)
        return self

    def stop(self) -> None:
        """End the server in order."""
        self.child.stop()

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash does."""
        self.child.kill()

    @property
    def pid(self) -> int:
        return self.child.pid

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing answers once this returns."""
        self.child.pause()

    def resume(self) -> None:
        """Let a paused server go on."""
        self.child.resume()

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

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", self._health)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
