"""The demo's input, `samples/head_ct.py`: its writer, its cache, its fallback; the real package where apt has it."""

import importlib
import importlib.util
import io
import json
import os
import plistlib
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

#: Its functions carry no types.
sitk: Any = importlib.import_module("SimpleITK")
SAMPLES = Path(__file__).parents[2] / "samples"
#: Distance of slices, rows and columns, mm.
SPACING = (1.5, 0.75, 0.5)


def load() -> ModuleType:
    """Import the script, which belongs to no package."""
    found = importlib.util.spec_from_file_location("head_ct", SAMPLES / "head_ct.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["head_ct"] = module
    found.loader.exec_module(module)
    return module


head_ct = load()


def matrix() -> NDArray[np.int16]:
    """Values that differ from voxel to voxel, from the lowest that a CT gives."""
    return (np.arange(4 * 5 * 6, dtype=np.int16) * 20 - 1024).reshape(4, 5, 6)


def run_script(target: Path, cache: Path, path: str) -> str:
    """Run the script; it must end well. Gives what it printed."""
    done = subprocess.run(
        [sys.executable, SAMPLES / "head_ct.py", target],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout


def test_series_has_the_volume_s_values_and_geometry(tmp_path: Path) -> None:
    """Another library reads from the written series the values and the geometry that went in."""
    head_ct.write_series(head_ct.Volume(matrix(), SPACING), tmp_path / "series")
    read = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    assert np.array_equal(sitk.GetArrayFromImage(read), matrix())
    assert read.GetSpacing() == pytest.approx(SPACING[::-1])
    assert read.GetOrigin() == pytest.approx((-1.25, -1.5, -2.25))
    assert read.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_slices_belong_together(tmp_path: Path) -> None:
    """The slices share study, series and frame of reference, and each is an instance of its own."""
    head_ct.write_series(head_ct.Volume(matrix(), SPACING), tmp_path / "series")
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "series").iterdir())]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({one.get(name) for one in slices}) == 1
    assert len({one.SOPInstanceUID for one in slices}) == len(slices)
    assert {one.file_meta.MediaStorageSOPInstanceUID for one in slices} == {one.SOPInstanceUID for one in slices}
    assert {(one.Modality, str(one.PatientName)) for one in slices} == {("CT", "DEMO^HEAD")}


def test_project_is_read_with_its_rows_turned_round(tmp_path: Path) -> None:
    """From an InVesalius project come its matrix, front row first, and its spacing as slices, rows, columns."""
    described = {"matrix": {"filename": "matrix.dat", "shape": [4, 5, 6]}, "spacing": [0.5, 0.75, 1.5]}
    with tarfile.open(tmp_path / "some.inv3", "w:gz") as archive:
        for name, content in (("main.plist", plistlib.dumps(described)), ("matrix.dat", matrix().tobytes())):
            member = tarfile.TarInfo(f"tmp/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    volume = head_ct.read_project(tmp_path / "some.inv3")
    assert volume.spacing == SPACING
    assert np.array_equal(volume.hounsfield, matrix()[:, ::-1])


def test_without_apt_one_shipped_slice_is_used(tmp_path: Path) -> None:
    """Where apt-get is missing, the folder gets pydicom's slice in place of an earlier series, and a line says so."""
    target = tmp_path / "series"
    target.mkdir()
    (target / "slice-0002.dcm").write_text("of an earlier call")
    printed = run_script(target, tmp_path / "cache", path="")
    assert printed.startswith("CT slice from the package pydicom (no head CT: apt-get could not")
    assert printed.count("\n") == 1
    assert [path.name for path in target.iterdir()] == ["slice-0001.dcm"]
    assert pydicom.dcmread(target / "slice-0001.dcm").Modality == "CT"


def test_cached_series_is_copied(tmp_path: Path) -> None:
    """A series that an earlier call made is copied from the cache, without apt-get."""
    head_ct.write_series(head_ct.Volume(matrix(), SPACING), tmp_path / "gurney" / "head-ct")
    printed = run_script(tmp_path / "series", tmp_path, path="")
    assert printed.startswith("head CT from Debian's package invesalius-examples")
    assert len(list((tmp_path / "series").iterdir())) == len(matrix())


@pytest.fixture
def apt(tmp_path: Path) -> None:
    """Skip where apt-get cannot deliver the package."""
    try:
        subprocess.run(
            ["apt-get", "download", head_ct.PACKAGE], cwd=tmp_path, check=True, capture_output=True, timeout=300
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"apt-get cannot deliver {head_ct.PACKAGE}: {error}")


@pytest.mark.usefixtures("apt")
def test_real_head_has_a_head_s_size(tmp_path: Path) -> None:
    """Of the real head CT, the sample MAP finds a head of 2.8 to 3.8 litres, 12 to 25 % of it bone."""
    printed = run_script(tmp_path / "series", tmp_path / "cache", path=os.environ["PATH"])
    assert printed == "head CT from Debian's package invesalius-examples (GPL-2), DICOM files: 108\n"
    paths = {"HOLOSCAN_INPUT_PATH": str(tmp_path / "series"), "HOLOSCAN_OUTPUT_PATH": str(tmp_path / "out")}
    environment = {**os.environ, **paths, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "app.py"], cwd=SAMPLES / "ct-body", env=environment, check=True, timeout=120)
    figures = json.loads((tmp_path / "out" / "metadata.json").read_text())
    body = figures["body"]["volume_mm3"]
    bone = next(one["volume_mm3"] for one in figures["segments"] if one["name"] == "bone")
    assert 2.8e6 < body < 3.8e6
    assert 0.12 < bone / body < 0.25
