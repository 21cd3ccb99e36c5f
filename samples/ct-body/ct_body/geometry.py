"""Where the slices of a series lie in the patient, in millimetres.

Coordinates are those of DICOM: x to the patient's left, y to the back, z to the head (PS3.3 C.7.6.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from ct_body.errors import UnusableInputError

#: How far a slice may lie from where an even stack puts it, in mm: headers round positions to a few decimals.
POSITION_TOLERANCE_MM = 0.05
#: How far direction cosines and pixel spacings of one series may differ.
HEADER_TOLERANCE = 1e-4

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Geometry:
    """An even stack of equal slices."""

    #: Centre of the first voxel of the first slice, mm.
    origin: Vector
    #: Direction cosines along a row, then along a column (ImageOrientationPatient).
    orientation: Vector
    #: Distance between rows, then between columns, mm (PixelSpacing).
    pixel_spacing: tuple[float, float]
    #: Distance between slice planes, mm; of a single slice its thickness, None where the header tells none.
    slice_spacing: float | None
    #: Distance of each slice plane from the coordinate origin along the normal, mm, ascending.
    positions: tuple[float, ...]

    @property
    def pixel_area(self) -> float:
        """Area of one pixel in mm²."""
        return self.pixel_spacing[0] * self.pixel_spacing[1]


def in_order(slices: Sequence[Dataset]) -> list[Dataset]:
    """Sort slices along the normal of the first one's plane."""
    normal = normal_of(slices[0])
    return sorted(slices, key=lambda one: float(position_of(one) @ normal))


def geometry_of(slices: Sequence[Dataset]) -> Geometry:
    """Give the geometry of sorted slices, or refuse those that make no even stack."""
    first = slices[0]
    _refuse_unequal(slices)
    normal = normal_of(first)
    positions = np.array([position_of(one) for one in slices])
    return Geometry(
        origin=positions[0],
        orientation=_numbers(first, "ImageOrientationPatient", 6),
        pixel_spacing=_pixel_spacing(first),
        slice_spacing=_slice_spacing(positions, normal) if len(slices) > 1 else _thickness(first),
        positions=tuple(float(along) for along in positions @ normal),
    )


def position_of(one: Dataset) -> Vector:
    """Centre of the slice's first pixel, mm (ImagePositionPatient)."""
    return _numbers(one, "ImagePositionPatient", 3)


def normal_of(one: Dataset) -> Vector:
    """Unit vector out of the slice's plane."""
    orientation = _numbers(one, "ImageOrientationPatient", 6)
    normal: Vector = np.cross(orientation[:3], orientation[3:])
    return normal


def _refuse_unequal(slices: Sequence[Dataset]) -> None:
    first = slices[0]
    for name in ("Rows", "Columns", "FrameOfReferenceUID"):
        if first.get(name) is None:
            raise UnusableInputError(f"the CT series has no {name}")
        if any(one.get(name) != first.get(name) for one in slices):
            raise UnusableInputError(f"the slices differ in {name}: this is no single stack")
    for name, count in (("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        wanted = _numbers(first, name, count)
        if any(not np.allclose(_numbers(one, name, count), wanted, atol=HEADER_TOLERANCE) for one in slices):
            raise UnusableInputError(f"the slices differ in {name}: this is no single stack")


def _slice_spacing(positions: NDArray[np.float64], normal: Vector) -> float:
    """Give the even distance of the planes; a constant shift in the plane (a tilted gantry) is allowed."""
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    even = positions[0] + np.arange(len(positions))[:, np.newaxis] * step
    spacing = float(step @ normal)
    if spacing <= POSITION_TOLERANCE_MM:
        raise UnusableInputError("several slices lie at the same place")
    if float(np.abs(positions - even).max()) > POSITION_TOLERANCE_MM:
        raise UnusableInputError("the slices are unevenly spaced: one is missing, doubled or moved")
    return spacing


def _pixel_spacing(one: Dataset) -> tuple[float, float]:
    rows, columns = (float(value) for value in _numbers(one, "PixelSpacing", 2))
    if rows <= 0 or columns <= 0:
        raise UnusableInputError("the CT series has no positive PixelSpacing")
    return rows, columns


def _thickness(one: Dataset) -> float | None:
    thickness = float(one.get("SliceThickness") or 0)
    return thickness if thickness > 0 else None


def _numbers(one: Dataset, name: str, count: int) -> Vector:
    try:
        values = np.array([float(value) for value in one.get(name) or ()], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all():
        raise UnusableInputError(f"a slice of the CT series has no usable {name}")
    return values
