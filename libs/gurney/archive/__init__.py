"""Zip and tar archives of payloads: written as streams, and unpacked with distrust."""

from gurney.archive.packing import Entry, exactly, tar_stream, zip_stream
from gurney.archive.unpacking import Limits, Member, Unpacked, unpack

__all__ = ["Entry", "Limits", "Member", "Unpacked", "exactly", "tar_stream", "unpack", "zip_stream"]
