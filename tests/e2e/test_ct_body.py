"""The sample MAP on a real CT slice, through the server: what a newcomer sees in the demo."""

import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gurney.testing.embedded import EmbeddedProcess
from tests.e2e import work
from tests.e2e.api import Api

SAMPLES = Path(__file__).parents[2] / "samples"
#: Its functions carry no types.
pydicom: Any = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedProcess]:
    """A server that has the samples as its folder MAPs."""
    with EmbeddedProcess(tmp_path_factory.mktemp("ct") / "data", SAMPLES) as running:
        yield running


@pytest.mark.slow
@pytest.mark.embedded
async def test_ct_body(server: EmbeddedProcess) -> None:
    """A CT slice goes in; a DICOM segmentation of its geometry, a picture and figures come out."""
    source = Path(importlib.import_module("pydicom.data").get_testdata_file("CT_small.dcm"))
    slice_ = pydicom.dcmread(source)
    async with Api(server.url, server.token) as api:
        made = await work.register(api, "ct-body", name="ct-body")
        assert made["state"] == "ready", made["reason"]
        job = await work.submit(api, "ct-body", {"ct/slice.dcm": source.read_bytes()})
        done = await work.ended(api, job["id"])
        assert done["state"] == "succeeded", await work.log(api, done)
        files = await work.results(api, done)
        (name,) = [path for path in files if path.endswith(".dcm")]
        segmentation = pydicom.dcmread(io.BytesIO(await work.result(api, done, name)))
        assert segmentation.Modality == "SEG"
        assert (segmentation.Rows, segmentation.Columns) == (slice_.Rows, slice_.Columns)
        assert segmentation.FrameOfReferenceUID == slice_.FrameOfReferenceUID
        assert segmentation.pixel_array.any()
        assert (await work.result(api, done, "overlay.png")).startswith(b"\x89PNG\r\n")
        assert json.loads(await work.result(api, done, "metadata.json")) == done["metadata"]
        areas = {segment["name"]: sum(segment["area_mm2"]) for segment in done["metadata"]["segments"]}
        assert areas["soft_tissue"] > areas["bone"] > 0
