"""A real Prometheus for tests: scrapes pages every moment, on a free loopback port, gone with its owner.

Methods block: call them off the loop.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from gurney.testing.child import Child, free_port
from gurney.testing.tools import tool

READY_WITHIN_S = 30.0
EVERY_S = 0.2
_CONFIGURATION = """\
global: {{ scrape_interval: {every}ms, scrape_timeout: {every}ms }}
scrape_configs:
  - job_name: gurney
    static_configs: [{{ targets: {targets} }}]
"""


class Prometheus:
    """One Prometheus that scrapes `/metrics` of these hosts and ports."""

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        self.folder = folder
        self.targets = list(targets)
        self.port = free_port()
        self._child: Child | None = None

    def start(self) -> Self:
        """Start it and return when it answers questions."""
        binary = tool("prometheus")
        if binary is None:
            raise FileNotFoundError("prometheus: the distribution's package of that name provides it")
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "prometheus.yml"
        configuration.write_text(_CONFIGURATION.format(every=int(EVERY_S * 1000), targets=json.dumps(self.targets)))
        command: list[str | Path] = [binary, f"--config.file={configuration}", f"--storage.tsdb.path={self.folder}/db"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        self._child = Child(command, self.folder / "prometheus.log").start()
        self._child.until(self._answers, READY_WITHIN_S)
        return self

    def stop(self) -> None:
        """End it; nothing happens when it is not there."""
        if self._child:
            self._child.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            self.query("vector(1)")
        except (URLError, OSError, ValueError):
            return False
        return True

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the value of each series that an expression gives now."""
        found = self._get("query", query=expression)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def value(self, expression: str) -> float:
        """Return the sum of what an expression gives now, 0 where it gives nothing."""
        return sum(value for _, value in self.query(expression))

    def metadata(self) -> dict[str, list[dict[str, str]]]:
        """Return what is known of each metric: its type and its help."""
        found: dict[str, list[dict[str, str]]] = self._get("metadata")
        return found

    def _get(self, what: str, **asked: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urlencode(asked)}"
        with urlopen(url, timeout=10) as answer:  # loopback
            return json.load(answer)["data"]
