"""Zip and tar archives of payloads: written as streams, and unpacked with distrust."""

from gurney.archive.packing import Entry, tar_stream, zip_stream
from gurney.archive.unpacking import Limits, Member, Unpacked, unpack

__all__ = ["Entry", "Limits", "Member", "Unpacked", "tar_stream", "unpack", "zip_stream"]
