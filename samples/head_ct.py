"""Puts a real CT into a folder as a DICOM series: `python samples/head_ct.py OUTDIR`.

Where `apt-get` can deliver Debian's package `invesalius-examples`, it is that package's head CT (GPL-2, 108 slices
of 256 x 256, 0.957 x 0.957 x 1.5 mm), written as DICOM and kept in the user's cache. Elsewhere it is the one slice
that the package pydicom carries. One line on standard output says which.
"""

import os
import plistlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PACKAGE = "invesalius-examples"
PROJECT = "usr/share/doc/invesalius-examples/examples/Cranium.inv3"
#: Hounsfield units that the stored value 0 stands for.
RESCALE_INTERCEPT = -1024
#: Longest wait for one call of the package manager, seconds.
APT_TIMEOUT_S = 300


class UnavailableError(Exception):
    """The head CT cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A CT that lies straight in the patient's axes."""

    #: HU; slices from the feet up, rows from the front to the back, columns from the patient's right to the left.
    hounsfield: NDArray[np.int16]
    #: Distance of slices, of rows and of columns, mm.
    spacing: tuple[float, float, float]


def main() -> int:
    """Fill the folder and say with what."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the script and its one argument
        print("usage: python samples/head_ct.py OUTDIR", file=sys.stderr)
        return 2
    try:
        series, origin = cached_head(), f"head CT from Debian's package {PACKAGE} (GPL-2)"
    except UnavailableError as error:
        series, origin = [shipped_slice()], f"CT slice from the package pydicom (no head CT: {error})"
    replace_series(series, Path(sys.argv[1]))
    print(f"{origin}, DICOM files: {len(series)}")
    return 0


def replace_series(series: list[Path], target: Path) -> None:
    """Copy the files in as slice-0001.dcm and so on, in place of those of an earlier call."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("slice-*.dcm"):
        old.unlink()
    for number, path in enumerate(series, start=1):
        shutil.copyfile(path, target / f"slice-{number:04}.dcm")


def shipped_slice() -> Path:
    """Find the CT slice among the files that pydicom carries; no network is used."""
    return Path(str(get_testdata_file("CT_small.dcm", download=False)))


def cached_head() -> list[Path]:
    """Give the head CT's slices, made at the first call and cached; a crash leaves no half series behind."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gurney"
    series = cache / "head-ct"
    if not series.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch, "series")
            write_series(read_project(fetch_project(Path(scratch))), made)
            made.rename(series)
    return sorted(series.glob("*.dcm"))


def fetch_project(folder: Path) -> Path:
    """Download and unpack the package inside the folder; needs no root and installs nothing."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder}"]
    try:
        call(["apt-get", "download", PACKAGE], folder)
    except UnavailableError:  # where the package lists were removed to save space, load them into the folder
        call(["apt-get", *own, "update"], folder)
        call(["apt-get", *own, "download", PACKAGE], folder)
    package = next(folder.glob(f"{PACKAGE}_*.deb"))
    call(["dpkg-deb", "-x", str(package), str(folder)], folder)
    return folder / PROJECT


def call(command: list[str], folder: Path) -> None:
    """Run one command of the package manager in the folder."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=APT_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"{command[0]} could not deliver {PACKAGE}") from error


def read_project(project: Path) -> Volume:
    """Read the matrix of an InVesalius project: a tar that holds `main.plist`, `matrix.dat` and more in one folder.

    The plist gives the shape (slices, rows, columns) and the spacing (x, y, z in mm). Rows are kept from the bottom of
    the picture to its top, as VTK does, and turned round here.
    """
    with tarfile.open(project) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        described: dict[str, Any] = plistlib.loads(_content(archive, members["main.plist"]))
        matrix = _content(archive, members[described["matrix"]["filename"]])
    values = np.frombuffer(matrix, dtype="<i2").reshape(described["matrix"]["shape"])
    column, row, along = (float(value) for value in described["spacing"])
    return Volume(values[:, ::-1].astype(np.int16), (along, row, column))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(member)
    return opened.read() if opened else b""


def write_series(volume: Volume, folder: Path) -> None:
    """Write one CT Image object per slice; the same volume always gives the same UIDs."""
    folder.mkdir(parents=True)
    for number, one in enumerate(slices_of(volume), start=1):
        one.save_as(folder / f"slice-{number:04}.dcm", enforce_file_format=True)


def slices_of(volume: Volume) -> Iterator[Dataset]:
    """Make the objects, the middle of the volume at the patient's coordinate origin."""
    seed = sha256(volume.hounsfield.tobytes()).hexdigest()
    for index, (values, corner) in enumerate(zip(volume.hounsfield, _corners(volume), strict=True)):
        one = _common(seed)
        one.InstanceNumber = index + 1
        one.SOPInstanceUID = _uid(seed, f"slice {index}")
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.ImagePositionPatient = [f"{value:.6f}" for value in corner]
        _put_pixels(one, values, volume.spacing)
        yield one


def _corners(volume: Volume) -> Iterator[tuple[float, float, float]]:
    """Centre of each slice's first pixel, mm: x to the left, y to the back, z to the head."""
    along, row, column = volume.spacing
    count, rows, columns = volume.hounsfield.shape
    for index in range(count):
        yield -(columns - 1) / 2 * column, -(rows - 1) / 2 * row, (index - (count - 1) / 2) * along


def _common(seed: str) -> Dataset:
    """What all slices share. The scan's date is not known, so dates stay empty."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.MediaStorageSOPClassUID = CTImageStorage
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID = CTImageStorage
    one.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    one.Modality = "CT"
    one.PatientName = "DEMO^HEAD"
    one.PatientID = "DEMO-HEAD"
    one.SeriesDescription = "Head CT of the InVesalius examples"
    one.PatientPosition = "HFS"
    one.StudyInstanceUID = _uid(seed, "study")
    one.SeriesInstanceUID = _uid(seed, "series")
    one.FrameOfReferenceUID = _uid(seed, "frame of reference")
    one.StudyID = one.SeriesNumber = "1"
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ContentDate", "ContentTime"):
        setattr(one, name, "")
    for name in ("AccessionNumber", "ReferringPhysicianName", "Manufacturer", "PositionReferenceIndicator"):
        setattr(one, name, "")
    one.AcquisitionNumber = one.KVP = None
    return one


def _put_pixels(one: Dataset, hounsfield: NDArray[np.int16], spacing: tuple[float, float, float]) -> None:
    along, row, column = spacing
    stored = hounsfield.astype(np.int32) - RESCALE_INTERCEPT
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.PixelSpacing = [f"{row:.6f}", f"{column:.6f}"]
    one.SliceThickness = f"{along:.6f}"
    one.Rows, one.Columns = hounsfield.shape
    one.SamplesPerPixel = 1
    one.PhotometricInterpretation = "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit = 15
    one.PixelRepresentation = 0
    one.RescaleIntercept = str(RESCALE_INTERCEPT)
    one.RescaleSlope = "1"
    one.RescaleType = "HU"
    one.WindowCenter, one.WindowWidth = "40", "400"
    one.PixelData = np.clip(stored, 0, 65535).astype("<u2").tobytes()


def _uid(seed: str, what: str) -> str:
    return str(generate_uid(entropy_srcs=[seed, what]))


if __name__ == "__main__":
    sys.exit(main())
