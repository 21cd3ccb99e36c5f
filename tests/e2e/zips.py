"""Zips that go in and come out: a script for the MAP `shell`, and files that bear a mark."""

import io
import zipfile
from collections.abc import Mapping

#: In the content of every file that goes in or comes out, in the names of some, and in the log.
MARK = "ZZMARKZZ"
COPY = f"""
echo "{MARK} in the log"
cp -r "$HOLOSCAN_INPUT_PATH/in" "$HOLOSCAN_OUTPUT_PATH/out"
mkdir -p "$HOLOSCAN_OUTPUT_PATH/empty/inner"
"""


def packed(script: str = COPY, files: Mapping[str, str] | None = None) -> bytes:
    """Return a zip with a script and what it works on."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run.sh", script)
        for path, content in (files or {"in/a.dcm": MARK, f"in/{MARK}/Müller.dcm": MARK * 9}).items():
            archive.writestr(path, content)
    return out.getvalue()


def unpacked(body: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
