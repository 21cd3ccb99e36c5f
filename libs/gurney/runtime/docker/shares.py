"""Who a run is on the host, so that it can write its results and we can remove them."""

import os
from dataclasses import dataclass
from pathlib import Path

from gurney.runtime.docker.container import Image


@dataclass(frozen=True, slots=True)
class Owner:
    """Who we are. Root gives the output folder to the image's user; anybody else lets the container run as himself."""

    uid: int
    gid: int

    @classmethod
    def here(cls) -> "Owner":
        return cls(os.geteuid(), os.getegid())

    def of(self, image: Image) -> tuple[int, int, str | None]:
        """Return who owns the output, and as whom the container runs; None: as the image says."""
        if self.uid == 0:
            return image.uid, image.gid, None
        return self.uid, self.gid, f"{self.uid}:{self.gid}"


def hand_over(output: Path, uid: int, gid: int) -> None:
    """Give the output folder, and what an attempt to start may have left in it, to the run. Blocks."""
    for path in (output, *output.rglob("*")):
        os.chown(path, uid, gid, follow_symlinks=False)
