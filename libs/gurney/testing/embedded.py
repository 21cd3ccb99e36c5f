"""The embedded server as its own process, for tests and benchmarks: started, stopped, killed, started again."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

GURNEY = Path(sys.executable).parent / "gurney"
READY_WITHIN_S = 60
STOPS_WITHIN_S = 30


class EmbeddedProcess:
    """One `gurney up` over one data folder. Methods block: call them off the loop."""

    def __init__(self, data: Path, maps: Path, environment: dict[str, str] | None = None) -> None:
        self.data = data
        self.maps = maps
        self._environment = environment or {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return (self.data / "url").read_text().strip()

    @property
    def token(self) -> str:
        return (self.data / "token").read_text().strip()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    @property
    def hosts(self) -> list[Path]:
        """The data folder of each agent: there is one."""
        return [self.data]

    @property
    def logs(self) -> str:
        """What every service has logged."""
        return self.log.read_text()

    @property
    def log(self) -> Path:
        return self.data.with_name(f"{self.data.name}.log")

    def start(self) -> Self:
        """Start and return when it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(GURNEY), "up", "--data", str(self.data), "--port", "0", "--maps", str(self.maps)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | self._environment,
                start_new_session=True,
            )
        stdout = self._process.stdout
        line = stdout.readline() if stdout else ""
        if "ready" not in line:
            self.kill()
            raise RuntimeError(f"the server did not start: {self.log.read_text()[-4000:]}")
        return self

    def stop(self) -> int:
        """Ask it to stop, as Ctrl-C does; returns its exit code."""
        return self._end(signal.SIGINT)

    def kill(self) -> int:
        """End it by SIGKILL."""
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout:
                process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
