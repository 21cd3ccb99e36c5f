"""Finds and reads the one CT series below a folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import pixel_array
from pydicom.uid import CTImageStorage

from ct_body.errors import UnusableInputError
from ct_body.geometry import Geometry, geometry_of, in_order

Hounsfield = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Series:
    """A CT series in the order of its slices."""

    #: The headers, without pixels.
    slices: list[Dataset]
    #: Hounsfield units: slices, rows, columns.
    hounsfield: Hounsfield
    geometry: Geometry
    #: Files below the folder that are no slice of the series (other objects, scout images, no DICOM).
    files_skipped: int


def read_series(folder: Path) -> Series:
    """Read the one CT series below the folder, whatever its files are called."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    headers = [header for path in files if (header := _ct_header(path)) is not None]
    if not headers:
        raise UnusableInputError(f"no CT series found: of {len(files)} files none is a CT image slice")
    _refuse_mixed(headers)
    slices = in_order(headers)
    geometry = geometry_of(slices)
    hounsfield = np.stack([_hounsfield(one) for one in slices])
    return Series(slices, hounsfield, geometry, files_skipped=len(files) - len(slices))


def _ct_header(path: Path) -> Dataset | None:
    """Read a CT slice's header; None of anything else, and of the scout images that scans are planned on."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return None
    is_slice = header.get("SOPClassUID") == CTImageStorage and "LOCALIZER" not in (header.get("ImageType") or ())
    return header if is_slice else None


def _refuse_mixed(headers: list[Dataset]) -> None:
    count = len({header.get("SeriesInstanceUID") for header in headers})
    if count > 1:
        raise UnusableInputError(f"the input mixes {count} CT series: give one")


def _hounsfield(one: Dataset) -> Hounsfield:
    """Decode one slice to whole Hounsfield units (PS3.3 C.11.1.1.2: stored value times slope plus intercept)."""
    if one.get("RescaleSlope") is None or one.get("RescaleIntercept") is None:
        raise UnusableInputError("the CT series has no RescaleSlope or RescaleIntercept, so its units are unknown")
    try:
        stored = pixel_array(one.filename)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UnusableInputError(
            f"a slice's pixels cannot be decoded (transfer syntax {one.file_meta.TransferSyntaxUID.name})"
        ) from error
    limits = np.iinfo(np.int16)
    rescaled = stored * float(one.RescaleSlope) + float(one.RescaleIntercept)
    return np.clip(np.rint(rescaled), limits.min, limits.max).astype(np.int16)
