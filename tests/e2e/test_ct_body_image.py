"""The sample MAP as an image: it gives what the folder gives."""

import importlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gurney.testing.docker import DockerDaemon
from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api, Json

ROOT = Path(__file__).parents[2]
#: Its functions carry no types.
pydicom: Any = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, docker_daemon: DockerDaemon) -> Iterator[EmbeddedProcess]:
    """A server that has the sample as a folder and as an image."""
    command = [sys.executable, "-m", "scripts.build_images", "ct-body"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"DOCKER_HOST": docker_daemon.url}, check=True, timeout=600)
    environment = {"GURNEY_DOCKER_URL": docker_daemon.url}
    with EmbeddedProcess(tmp_path_factory.mktemp("ct") / "data", ROOT / "samples", environment) as running:
        yield running


async def run(api: Api, urn: str, slice_: bytes) -> Json:
    """Run a MAP on the slice."""
    made = (await api.post("/v1/maps", {"urn": urn})).must(202).json
    made = await work.settled(api, made["id"])
    assert made["state"] == "ready", made["reason"]
    job = await work.ended(api, (await work.submit(api, made["id"], {"ct/slice.dcm": slice_}))["id"])
    assert job["state"] == "succeeded", await work.log(api, job)
    return job


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.needs("docker")
@pytest.mark.req("MAS-42")
async def test_image_gives_what_the_folder_gives(server: EmbeddedProcess) -> None:
    """The same picture, figures and segmentation come out of the image and of the folder."""
    source = Path(importlib.import_module("pydicom.data").get_testdata_file("CT_small.dcm")).read_bytes()
    async with Api(server.url, server.token) as api:
        folder, image = [await run(api, urn, source) for urn in ("urn:gurney:dir:ct-body", "ct-body")]
        assert (await work.results(api, folder)).keys() == (await work.results(api, image)).keys()
        assert folder["metadata"] == image["metadata"] is not None
        pictures = [await work.result(api, job, "overlay.png") for job in (folder, image)]
        assert pictures[0] == pictures[1]
        read = [pydicom.dcmread(io.BytesIO(await work.result(api, job, "segmentation.dcm"))) for job in (folder, image)]
        assert (read[0].pixel_array == read[1].pixel_array).all()
        assert read[0].FrameOfReferenceUID == read[1].FrameOfReferenceUID
