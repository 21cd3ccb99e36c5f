"""The figures of a segmentation: areas in mm², volumes in mm³. None of them names a patient."""

from typing import Any

import numpy as np

from ct_body.geometry import Geometry
from ct_body.series import Series
from ct_body.tissue import AIR_BELOW_HU, BONE_FROM_HU, Labels, Mask, Tissue


def metadata(series: Series, labels: Labels) -> dict[str, Any]:
    """Give what `metadata.json` holds."""
    return {
        "thresholds_hu": {"air_below": AIR_BELOW_HU, "bone_from": BONE_FROM_HU},
        "input": {"slices": len(series.slices), "files_skipped": series.files_skipped},
        "geometry": _geometry(series.geometry, labels.shape),
        "body": _figures(labels > 0, series.geometry),
        "segments": [_segment(tissue, labels, series.geometry) for tissue in Tissue],
    }


def _segment(tissue: Tissue, labels: Labels, geometry: Geometry) -> dict[str, Any]:
    return {"number": tissue.value, "name": tissue.name.lower(), **_figures(labels == tissue, geometry)}


def _figures(mask: Mask, geometry: Geometry) -> dict[str, Any]:
    """Count a mask's voxels; the volume is None where the header tells no slice thickness."""
    per_slice = np.count_nonzero(mask, axis=(1, 2))
    voxels = int(per_slice.sum())
    area = geometry.pixel_area
    spacing = geometry.slice_spacing
    return {
        "voxels": voxels,
        "volume_mm3": None if spacing is None else round(voxels * area * spacing, 3),
        "area_mm2": [round(float(count) * area, 3) for count in per_slice],
    }


def _geometry(geometry: Geometry, shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "slices": shape[0],
        "rows": shape[1],
        "columns": shape[2],
        "pixel_spacing_mm": list(geometry.pixel_spacing),
        "slice_spacing_mm": geometry.slice_spacing,
        "origin_mm": geometry.origin.tolist(),
        "orientation": geometry.orientation.tolist(),
        "slice_positions_mm": [round(position, 4) for position in geometry.positions],
    }
