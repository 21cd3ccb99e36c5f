"""Who an agent is, and that its folder is its alone."""

import stat
from pathlib import Path

from services.agent.identity import Identity


async def test_the_folder_is_closed_to_others(tmp_path: Path) -> None:
    """Nobody else on the host reads the inputs of runs, whatever the data folder's own mode is."""
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o755)
    async with Identity(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
