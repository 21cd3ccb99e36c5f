"""Segments a CT series: `HOLOSCAN_INPUT_PATH` in, `HOLOSCAN_OUTPUT_PATH` out, nothing else is read or written.

Exit code 0: the three files are written. 2: the input cannot be segmented, standard error says why, nothing is written.
What is printed holds no patient data: no file names, no header values that could name somebody.
"""

import json
import os
import sys
import warnings
from io import BytesIO
from pathlib import Path

from ct_body.errors import UnusableInputError
from ct_body.measures import metadata
from ct_body.overlay import overlay
from ct_body.segmentation import segmentation
from ct_body.series import Series, read_series
from ct_body.tissue import classify

EXIT_UNUSABLE_INPUT = 2


def main() -> int:
    """Run once from the input folder to the output folder."""
    warnings.simplefilter("ignore")  # the DICOM libraries quote header values in theirs
    source = Path(os.environ.get("HOLOSCAN_INPUT_PATH", "/var/holoscan/input"))
    target = Path(os.environ.get("HOLOSCAN_OUTPUT_PATH", "/var/holoscan/output"))
    try:
        results = segment(source)
    except UnusableInputError as error:
        print(f"ct-body: {error}", file=sys.stderr)
        return EXIT_UNUSABLE_INPUT
    target.mkdir(parents=True, exist_ok=True)
    for name, content in results.items():
        (target / name).write_bytes(content)
        say(f"wrote {name}, {len(content)} bytes")
    return 0


def segment(source: Path) -> dict[str, bytes]:
    """Give the output files' contents by name; all are made before the first is written."""
    say("reading")
    series = read_series(source)
    slices, rows, columns = series.hounsfield.shape
    say(f"read {slices} slices of {rows} x {columns}, skipped {series.files_skipped} files")
    return results_of(series)


def results_of(series: Series) -> dict[str, bytes]:
    """Segment, measure and draw."""
    labels = classify(series.hounsfield)
    figures = metadata(series, labels)
    for segment_figures in figures["segments"]:
        say(f"{segment_figures['name']}: {segment_figures['voxels']} voxels")
    segmented, picture = BytesIO(), BytesIO()
    overlay(series, labels).save(picture, format="PNG")
    segmentation(series.slices, labels).save_as(segmented)
    return {
        "segmentation.dcm": segmented.getvalue(),
        "overlay.png": picture.getvalue(),
        "metadata.json": (json.dumps(figures, indent=2) + "\n").encode(),
    }


def say(progress: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(progress, flush=True)


if __name__ == "__main__":
    sys.exit(main())
