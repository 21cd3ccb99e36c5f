"""A picture of the result: slices in grey and, below or beside them, the same with segments in colour."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ct_body.colours import COLOURS
from ct_body.series import Hounsfield, Series
from ct_body.tissue import Labels, Tissue

#: The usual window for soft tissue: black up to -160 HU, white from 240 HU.
WINDOW_CENTRE_HU = 40
WINDOW_WIDTH_HU = 400
#: How much of a segment's colour covers the grey, 0 to 1; the body's border is drawn in full.
OPACITY = {Tissue.SOFT_TISSUE: 0.3, Tissue.BONE: 0.7, Tissue.AIR: 0.75}
#: Slices shown at most; of a series with fewer, one.
SLICES_SHOWN = 4
#: Longest side of one slice's picture, in pixels.
TILE_PIXELS = 360
GAP_PIXELS = 4
MARGIN_MM = 8.0

Picture = NDArray[np.uint8]
Window = tuple[slice, slice]


def overlay(series: Series, labels: Labels) -> Image.Image:
    """Draw slices that are evenly spread over the body and cropped to it."""
    shown = _spread(np.flatnonzero(labels.any(axis=(1, 2))))
    spacing = series.geometry.pixel_spacing
    window = _crop(labels, spacing)
    size = _tile_size(window, spacing)
    grey = [_grey(series.hounsfield[index][window], size) for index in shown]
    coloured = [_coloured(tile, labels[index][window], size) for tile, index in zip(grey, shown, strict=True)]
    return _mosaic([grey, coloured] if len(shown) > 1 else [grey + coloured])


def _spread(indices: NDArray[np.intp]) -> list[int]:
    count = SLICES_SHOWN if len(indices) >= SLICES_SHOWN else 1
    return [int(indices[(2 * part + 1) * len(indices) // (2 * count)]) for part in range(count)]


def _crop(labels: Labels, spacing: tuple[float, float]) -> Window:
    """Give the rows and columns that the body takes in any slice, with a margin."""
    taken = labels.any(axis=0)
    found = ndimage.find_objects(taken.astype(np.uint8))[0]
    rows, columns = (
        slice(max(0, part.start - round(MARGIN_MM / step)), min(limit, part.stop + round(MARGIN_MM / step)))
        for part, step, limit in zip(found, spacing, taken.shape, strict=True)
    )
    return rows, columns


def _tile_size(window: Window, spacing: tuple[float, float]) -> tuple[int, int]:
    """Width and height in square pixels, so that a body keeps its shape whatever its spacing."""
    height, width = ((part.stop - part.start) * step for part, step in zip(window, spacing, strict=True))
    scale = TILE_PIXELS / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _grey(hounsfield: Hounsfield, size: tuple[int, int]) -> Picture:
    lowest = WINDOW_CENTRE_HU - WINDOW_WIDTH_HU / 2
    shades = np.clip((hounsfield - lowest) * (255 / WINDOW_WIDTH_HU), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(shades).resize(size, Image.Resampling.BICUBIC).convert("RGB"))


def _coloured(grey: Picture, labels: Labels, size: tuple[int, int]) -> Picture:
    enlarged = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    drawn = grey.astype(np.float32)
    for tissue, colour in COLOURS.items():
        mask = enlarged == tissue
        drawn[mask] = drawn[mask] * (1 - OPACITY[tissue]) + np.array(colour) * OPACITY[tissue]
    inside = enlarged > 0
    drawn[inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)] = COLOURS[Tissue.SOFT_TISSUE]
    return drawn.astype(np.uint8)


def _mosaic(rows: list[list[Picture]]) -> Image.Image:
    height, width, _ = rows[0][0].shape
    canvas = Image.new(
        "RGB", (len(rows[0]) * (width + GAP_PIXELS) - GAP_PIXELS, len(rows) * (height + GAP_PIXELS) - GAP_PIXELS)
    )
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            canvas.paste(Image.fromarray(tile), (column * (width + GAP_PIXELS), row * (height + GAP_PIXELS)))
    return canvas
