"""Curves as PNG. Needs Pillow, which the server does not."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gurney.errors import Invalid
from services.simulate.fill import Filled
from services.simulate.queue import Replayed

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

Points = Sequence[tuple[float, float]]

#: Pixels.
SIZE = (960, 540)
MARGIN = 64
TICKS = 10
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def draw(folder: Path, fills: Sequence[Filled], replays: Sequence[Replayed]) -> list[Path]:
    """Draw what was given over what arrived, and over time, a line for each run; raises `Invalid` without Pillow."""
    folder.mkdir(parents=True, exist_ok=True)
    given = [[(0.0, 0.0), *run.curve] for run in fills]
    times = [[(at / 3600, share) for at, share, _ in run.curve] for run in replays]
    queues = [[(at / 3600, float(waiting)) for at, _, waiting in run.curve] for run in replays]
    return [
        _plot(folder / name, lines, labels)
        for name, lines, labels in (
            ("allocation.png", given, ("GPUs asked so far, % of those there are", "GPUs given, %")),
            ("allocation_over_time.png", times, ("hours", "GPUs given, %")),
            ("queue_over_time.png", queues, ("hours", "jobs that wait")),
        )
        if lines
    ]


def _plot(path: Path, lines: Sequence[Points], labels: tuple[str, str]) -> Path:
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise Invalid("plots need Pillow: pip install 'gurney[plots]'") from error
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    across, up = (ticks(max((point[axis] for line in lines for point in line), default=0)) for axis in (0, 1))
    _axes(pen, across, up, labels)
    for number, line in enumerate(lines):
        pen.line([_at(x / across[-1], y / up[-1]) for x, y in line], fill=COLOURS[number % len(COLOURS)], width=1)
    image.save(path)
    return path


def ticks(most: float) -> list[float]:
    """Return round numbers at equal distances, from 0 to the first that is not less than `most`; ten steps or fewer."""
    most = most or 1.0
    least = most / TICKS
    power = 10 ** math.floor(math.log10(least))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= least)
    return [number * step for number in range(math.ceil(most / step) + 1)]


def _axes(pen: "ImageDraw", across: Sequence[float], up: Sequence[float], labels: tuple[str, str]) -> None:
    for each in across:
        part = each / across[-1]
        pen.line([_at(part, 0), _at(part, 1)], fill="#dddddd")
        pen.text((_at(part, 0)[0], SIZE[1] - MARGIN + 6), f"{each:.6g}", fill="black", anchor="ma")
    for each in up:
        part = each / up[-1]
        pen.line([_at(0, part), _at(1, part)], fill="#dddddd")
        pen.text((MARGIN - 6, _at(0, part)[1]), f"{each:.6g}", fill="black", anchor="rm")
    pen.text((SIZE[0] / 2, SIZE[1] - MARGIN / 2), labels[0], fill="black", anchor="ma")
    pen.text((MARGIN, MARGIN / 2), labels[1], fill="black", anchor="lm")


def _at(x: float, y: float) -> tuple[float, float]:
    """Return the pixel of a point, both of 0 to 1."""
    return MARGIN + x * (SIZE[0] - 2 * MARGIN), SIZE[1] - MARGIN - y * (SIZE[1] - 2 * MARGIN)
