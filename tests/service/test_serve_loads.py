"""What a process of `gurney serve` loads: most of the time that a start takes goes into it."""

import subprocess
import sys

import pytest

BUILD = """
import asyncio, sys
from gurney.settings import Settings
from services.serve import __main__
from services.serve.composition import Composition
async def build():
    settings = Settings(mongo_url="mongodb://127.0.0.1:9/", run_secret="x", docker_url="none")
    composition = Composition(settings, sys.argv[1:])
    [build() for build in composition.builds().values()]
    await composition.close()
asyncio.run(build())
print(*{name.split(".")[1] for name in sys.modules if name.startswith("services.")} - {"serve"})
print(*{"docker", "minio", "motor"} & set(sys.modules))
"""


@pytest.mark.parametrize(("service", "drivers"), [("job", "motor"), ("agent", "")])
def test_a_process_loads_what_it_serves(service: str, drivers: str) -> None:
    """No other service is loaded, and no driver that this one has no use for."""
    command = [sys.executable, "-c", BUILD, service]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert told.splitlines() == [service, drivers]
