"""What tells our containers from those of others: labels. One daemon may serve several data folders."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PREFIX = "gurney-"
_OURS = "gurney."


@dataclass(frozen=True, slots=True)
class House:
    """One node over one data folder."""

    node: str
    data: Path

    @property
    def id(self) -> str:
        """The same for the same folder, also after it was emptied, so that what it left is found."""
        return hashlib.sha256(f"{self.node}\0{self.data}".encode()).hexdigest()[:16]

    @property
    def labels(self) -> dict[str, str]:
        return {"gurney.node": self.node, "gurney.house": self.id}

    @property
    def filter(self) -> str:
        """What lists and events are filtered by."""
        return f"gurney.house={self.id}"

    def owns(self, labels: Mapping[str, str] | None) -> bool:
        return (labels or {}).get("gurney.house") == self.id


def silenced(labels: Iterable[str]) -> dict[str, str]:
    """Return labels that say nothing, for a container whose image has such as ours are: it would inherit them."""
    return {name: "" for name in labels if name.startswith(_OURS)}


def name_of(run_id: str) -> str:
    """Return the name of a run's container: it can be taken once."""
    return f"{PREFIX}{run_id}"
