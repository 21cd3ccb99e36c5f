"""A real Prometheus for tests: scrapes pages every moment, on a free loopback port, gone with its owner.

Methods block: call them off the loop.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode
from urllib.request import urlopen

from gurney.testing.child import Child, answers, free_port
from gurney.testing.tools import provided

READY_WITHIN_S = 30.0
EVERY_S = 0.2
_CONFIGURATION = """\
global: {{ scrape_interval: {every}ms, scrape_timeout: {every}ms }}
scrape_configs:
  - job_name: gurney
    static_configs: [{{ targets: {targets} }}]
"""


class Prometheus(Child):
    """One Prometheus that scrapes `/metrics` of these hosts and ports."""

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        self._targets = list(targets)
        self._configuration = folder / "prometheus.yml"
        self.port = free_port()
        command: list[str | Path] = [provided("prometheus"), f"--config.file={self._configuration}"]
        command += [f"--storage.tsdb.path={folder}/db", f"--web.listen-address=127.0.0.1:{self.port}"]
        super().__init__([*command, "--log.level=warn"], folder / "prometheus.log")

    def start(self) -> Self:
        """Start it and return when it answers questions."""
        configuration = _CONFIGURATION.format(every=int(EVERY_S * 1000), targets=json.dumps(self._targets))
        self._configuration.parent.mkdir(parents=True, exist_ok=True)
        self._configuration.write_text(configuration)
        return super().start().until(lambda: answers(self._url("query", query="vector(1)")), READY_WITHIN_S)

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
        with urlopen(self._url(what, **asked), timeout=10) as answer:  # noqa: S310 - loopback
            return json.load(answer)["data"]

    def _url(self, what: str, **asked: str) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1/{what}?{urlencode(asked)}"
