"""The sample MAP `samples/ct-body`, run as a server runs it, on a phantom of known size and on a real slice.

Its DICOM Segmentation is read back by dcmqi (DCMTK) and SimpleITK, neither of which wrote it.
"""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

#: Its functions carry no types.
sitk: Any = importlib.import_module("SimpleITK")
MAP = Path(__file__).parents[2] / "samples" / "ct-body"
SLICES, ROWS, COLUMNS = 9, 150, 130
#: Distance of slices, rows and columns, mm.
SPACING = (2.5, 0.8, 1.25)
ORIGIN = np.array([-40.0, 25.5, 310.25])
#: Along rows, columns and slices: unit vectors that lie in none of the patient's axes.
DIRECTION = np.array([[0.8, 0.36, 0.48], [-0.6, 0.48, 0.64], [0.0, -0.8, 0.6]])
#: Slices that hold the body; the others hold the table alone.
WITH_BODY = range(1, 8)
#: Half axes in mm of ellipses about (row, column) in mm, and HU; later ones lie above earlier ones.
BODY = ((55.0, 80.0), (45.0, 60.0))
BONE = ((75.0, 80.0), (12.0, 20.0))
CAVITY = ((38.0, 80.0), (16.0, 22.0))
ISLAND = ((38.0, 80.0), (6.0, 6.0))
#: Rows of the table, which a gap parts from the body.
TABLE_ROWS = slice(138, 142)
SECRETS = ("NOBODY^NOMEN", "ID-4711")


@dataclass(frozen=True)
class Run:
    """What a run of the application left."""

    source: Path
    target: Path
    code: int
    stdout: str
    stderr: str

    @property
    def metadata(self) -> dict[str, Any]:
        """The figures that it wrote."""
        content: dict[str, Any] = json.loads((self.target / "metadata.json").read_text())
        return content

    def areas(self, name: str) -> list[float]:
        """Area of one segment in each slice, mm²."""
        found = next(segment for segment in self.metadata["segments"] if segment["name"] == name)
        areas: list[float] = found["area_mm2"]
        return areas


def run_app(source: Path, target: Path) -> Run:
    """Run the manifest's command in the MAP's folder with this Python first on PATH."""
    manifest = json.loads((MAP / "app.json").read_text())
    paths = {"HOLOSCAN_INPUT_PATH": str(source), "HOLOSCAN_OUTPUT_PATH": str(target)}
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        json.loads(manifest["command"]),
        cwd=MAP,
        env={**os.environ, **manifest["environment"], **paths, "PATH": search},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Run(source, target, done.returncode, done.stdout, done.stderr)


def ellipse(about: tuple[float, float], half_axes: tuple[float, float]) -> NDArray[np.bool_]:
    """Rows and columns whose centre lies inside an ellipse, given in mm."""
    row, column = np.ogrid[:ROWS, :COLUMNS]
    below = (row * SPACING[1] - about[0]) / half_axes[0]
    beside = (column * SPACING[2] - about[1]) / half_axes[1]
    inside: NDArray[np.bool_] = below**2 + beside**2 <= 1
    return inside


def area(shape: tuple[tuple[float, float], tuple[float, float]]) -> float:
    """Area of an ellipse, mm²."""
    return math.pi * shape[1][0] * shape[1][1]


def phantom_slice(index: int) -> NDArray[np.int16]:
    """One slice in Hounsfield units, all of them even."""
    hounsfield = np.full((ROWS, COLUMNS), -1000, dtype=np.int16)
    hounsfield[TABLE_ROWS] = 300
    if index in WITH_BODY:
        for shape, value in ((BODY, 40), (BONE, 700), (CAVITY, -900), (ISLAND, 60)):
            hounsfield[ellipse(*shape)] = value
    return hounsfield


def ct_slice(index: int, hounsfield: NDArray[np.int16], series: str = "1.2.3.4") -> Dataset:
    """A CT image whose stored values are half the Hounsfield units above -1024."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CTImageStorage
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = generate_uid()
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3", series, "1.2.3.5"
    one.PatientName, one.PatientID = SECRETS
    one.Modality, one.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    one.ImagePositionPatient = [round(float(value), 4) for value in ORIGIN + DIRECTION[2] * SPACING[0] * index]
    one.ImageOrientationPatient = [float(value) for value in DIRECTION[:2].ravel()]
    one.PixelSpacing, one.SliceThickness = list(SPACING[1:]), SPACING[0]
    one.Rows, one.Columns = hounsfield.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
    one.RescaleSlope, one.RescaleIntercept = 2, -1024
    one.PixelData = ((hounsfield.astype(np.int32) + 1024) // 2).astype("<u2").tobytes()
    return one


def save(one: Dataset, path: Path) -> None:
    """Write a DICOM file, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)


def write_phantom(folder: Path) -> None:
    """Write the series in no order, under no telling names, among files that are no part of it."""
    for index in range(SLICES):
        save(ct_slice(index, phantom_slice(index)), folder / f"part{index % 2}" / f"{index * 7 % SLICES}")
    scout = ct_slice(20, phantom_slice(0), series="1.2.3.9")
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(scout, folder / "scout.dcm")
    capture = ct_slice(30, phantom_slice(0), series="1.2.3.10")
    capture.file_meta.MediaStorageSOPClassUID = capture.SOPClassUID = SecondaryCaptureImageStorage
    save(capture, folder / "capture.dcm")
    (folder / "notes.txt").write_text("no DICOM")


def read_segments(run: Run, folder: Path) -> list[Any]:
    """Read the segmentation back, one image per segment."""
    reader = shutil.which("segimage2itkimage", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if reader is None:
        pytest.skip("dcmqi has no wheel for this platform")
    folder.mkdir(parents=True)
    written = run.target / "segmentation.dcm"
    subprocess.run(
        [reader, "--inputDICOM", written, "--outputDirectory", folder], check=True, capture_output=True, timeout=60
    )
    return [sitk.ReadImage(str(folder / f"{number}.nrrd")) for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the phantom."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder / "in")
    return run_app(folder / "in", folder / "out")


@pytest.fixture(scope="module")
def real_slice(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the CT slice that pydicom carries."""
    folder = tmp_path_factory.mktemp("slice")
    (folder / "in").mkdir()
    shutil.copyfile(str(get_testdata_file("CT_small.dcm", download=False)), folder / "in" / "x")
    return run_app(folder / "in", folder / "out")


def test_run_leaves_the_three_files(phantom: Run) -> None:
    """A run on a CT series exits with 0 and leaves exactly a segmentation, a picture and the figures."""
    assert (phantom.code, phantom.stderr) == (0, "")
    assert {path.name for path in phantom.target.iterdir()} == {"segmentation.dcm", "overlay.png", "metadata.json"}
    assert phantom.metadata["input"] == {"slices": SLICES, "files_skipped": 3}


def test_areas_are_those_of_the_phantom(phantom: Run) -> None:
    """Each segment's areas agree within 1 % with the areas of the ellipses that the phantom is made of."""
    air = area(CAVITY) - area(ISLAND)
    truth = {"bone": area(BONE), "air": air, "soft_tissue": area(BODY) - area(BONE) - air}
    for name, wanted in truth.items():
        expected = [wanted if index in WITH_BODY else 0.0 for index in range(SLICES)]
        assert phantom.areas(name) == pytest.approx(expected, rel=0.01)


def test_volume_is_area_times_distance_of_slices(phantom: Run) -> None:
    """The body's volume agrees within 1 % with its ellipse times the distance of the slice planes, 2.5 mm."""
    assert phantom.metadata["body"]["volume_mm3"] == pytest.approx(area(BODY) * len(WITH_BODY) * 2.5, rel=0.01)


def test_another_library_reads_the_source_geometry(phantom: Run, tmp_path: Path) -> None:
    """The segmentation has the source's origin, spacing, direction and size, as two other libraries read both."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(phantom.source), "1.2.3.4", recursive=True)
    source = sitk.ReadImage(names)
    assert source.GetSize() == (COLUMNS, ROWS, SLICES)
    for segment in read_segments(phantom, tmp_path / "segments"):
        assert segment.GetSize() == source.GetSize()
        assert segment.GetOrigin() == pytest.approx(source.GetOrigin(), abs=1e-3)
        assert segment.GetOrigin() == pytest.approx(ORIGIN, abs=1e-3)
        assert segment.GetSpacing() == pytest.approx(SPACING[::-1], abs=1e-3)
        assert segment.GetDirection() == pytest.approx(DIRECTION.T.ravel(), abs=1e-4)


def test_another_library_reads_the_phantom_s_voxels(phantom: Run, tmp_path: Path) -> None:
    """Voxel for voxel the segments are the phantom's soft tissue, bone and enclosed air, without the table."""
    soft, bone, air = (sitk.GetArrayFromImage(one) > 0 for one in read_segments(phantom, tmp_path / "segments"))
    hounsfield = np.stack([phantom_slice(index) for index in range(SLICES)])
    hounsfield[:, TABLE_ROWS] = -1000
    assert np.array_equal(soft, (hounsfield == 40) | (hounsfield == 60))
    assert np.array_equal(bone, hounsfield == 700)
    assert np.array_equal(air, hounsfield == -900)


def test_segments_carry_standard_codes(phantom: Run) -> None:
    """The segments are binary, do not overlap and are named by SNOMED CT codes."""
    written = pydicom.dcmread(phantom.target / "segmentation.dcm")
    kinds = [one.SegmentedPropertyTypeCodeSequence[0] for one in written.SegmentSequence]
    assert (written.SegmentationType, written.SegmentsOverlap) == ("BINARY", "NO")
    assert [(kind.CodeValue, kind.CodingSchemeDesignator) for kind in kinds] == [
        ("87784001", "SCT"),
        ("272673000", "SCT"),
        ("15158005", "SCT"),
    ]
    assert written.StudyInstanceUID == "1.2.3"
    assert written.FrameOfReferenceUID == "1.2.3.5"


@pytest.mark.parametrize("fixture", ["phantom", "real_slice"])
def test_nothing_names_the_patient(fixture: str, request: pytest.FixtureRequest) -> None:
    """Neither what is printed nor the figures hold the patient's name or number."""
    run: Run = request.getfixturevalue(fixture)
    text = run.stdout + run.stderr + (run.target / "metadata.json").read_text()
    assert not [secret for secret in (*SECRETS, "CompressedSamples", "1CT1", "1.2.3") if secret in text]


def test_picture_shows_grey_slices_and_coloured_ones(phantom: Run) -> None:
    """The upper half of the picture is a CT in grey, the lower half shows bone in amber and air in blue."""
    drawn = np.asarray(Image.open(phantom.target / "overlay.png").convert("RGB")).astype(int)
    upper, lower = np.split(drawn[: len(drawn) // 2 * 2], 2)
    assert (np.ptp(upper, axis=2) == 0).mean() > 0.99
    assert len(np.unique(upper)) > 3
    red, green, blue = np.moveaxis(lower, 2, 0)
    body = (np.ptp(lower, axis=2) > 20).sum()
    assert ((red > blue + 100) & (green > 120)).sum() / body == pytest.approx(area(BONE) / area(BODY), rel=0.05)
    air = area(CAVITY) - area(ISLAND)
    assert (blue > red + 100).sum() / body == pytest.approx(air / area(BODY), rel=0.05)


def test_single_slice_keeps_its_areas_and_geometry(real_slice: Run, tmp_path: Path) -> None:
    """Of one real slice, areas agree within 1 % with counts of its raw bytes, and another library reads its grid."""
    header = pydicom.dcmread(real_slice.source / "x")
    raw = np.frombuffer(header.PixelData, dtype="<i2").astype(int) - 1024
    pixel = 0.661468**2
    assert real_slice.areas("bone") == pytest.approx([(raw >= 226).sum() * pixel], rel=0.01)
    assert real_slice.areas("soft_tissue") == pytest.approx([((raw >= -500) & (raw < 226)).sum() * pixel], rel=0.01)
    assert real_slice.areas("air") == [0.0]
    source = sitk.ReadImage(str(real_slice.source / "x"))
    for segment in read_segments(real_slice, tmp_path / "segments"):
        assert segment.GetSize() == source.GetSize()
        assert segment.GetOrigin() == pytest.approx(source.GetOrigin(), abs=1e-4)
        assert segment.GetSpacing() == pytest.approx((0.661468, 0.661468, 5.0), abs=1e-6)
        assert segment.GetDirection() == pytest.approx(source.GetDirection())


def no_ct(folder: Path) -> None:
    """Write an input with nothing that is a CT."""
    (folder / "notes.txt").write_text("no DICOM")


def two_series(folder: Path) -> None:
    """Write slices of two series."""
    for index in range(4):
        save(ct_slice(index, phantom_slice(index), series=f"1.2.3.{index // 2}"), folder / str(index))


def missing_slice(folder: Path) -> None:
    """Write a series without its third slice."""
    for index in (0, 1, 3, 4):
        save(ct_slice(index, phantom_slice(index)), folder / str(index))


def doubled_slice(folder: Path) -> None:
    """Write one slice twice."""
    for name in ("a", "b"):
        save(ct_slice(3, phantom_slice(3)), folder / name)


def turned_slice(folder: Path) -> None:
    """Write a series one of whose slices lies in another plane."""
    for index in range(3):
        one = ct_slice(index, phantom_slice(index))
        if index == 1:
            one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        save(one, folder / str(index))


def only_air(folder: Path) -> None:
    """Write a slice that shows nothing."""
    save(ct_slice(0, np.full((ROWS, COLUMNS), -1000, dtype=np.int16)), folder / "0")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (no_ct, "no CT series found: of 1 files none is a CT image slice"),
        (two_series, "the input mixes 2 CT series: give one"),
        (missing_slice, "the slices are unevenly spaced: one is missing, doubled or moved"),
        (doubled_slice, "several slices lie at the same place"),
        (turned_slice, "the slices differ in ImageOrientationPatient: this is no single stack"),
        (only_air, "the CT series shows nothing denser than air"),
    ],
)
def test_unusable_input_is_refused(write: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    """Input that cannot be segmented gives exit code 2, one plain line that says why, and no file at all."""
    (tmp_path / "in").mkdir()
    write(tmp_path / "in")
    run = run_app(tmp_path / "in", tmp_path / "out")
    assert (run.code, run.stderr) == (2, f"ct-body: {reason}\n")
    assert not (tmp_path / "out").exists()
