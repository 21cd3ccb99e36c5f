"""What several tests of cores stand on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gurney.objects.folder import FolderObjects


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[FolderObjects]:
    """A folder store."""
    store = FolderObjects(tmp_path / "store")
    await store.open()
    yield store
    await store.close()
