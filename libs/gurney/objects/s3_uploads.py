"""What an S3 server says about uploads in parts. Pure."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote_plus
from xml.sax.saxutils import escape

from gurney.errors import StoreUnavailable
from gurney.objects.calls import Answer


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts that is not complete."""

    key: str
    id: str
    begun_at: datetime


def upload_id(answer: Answer) -> str:
    """Return the id of an upload that has begun."""
    return _text(_parsed(answer), "UploadId")


def of_answer(answer: Answer) -> tuple[list[Upload], dict[str, str]]:
    """Return a page of uploads, and what the query for the next one adds; nothing after the last."""
    page = _parsed(answer)
    escaped = page.findtext("{*}EncodingType") == "url"
    uploads = [_upload(each, escaped=escaped) for each in page.findall("{*}Upload")]
    if page.findtext("{*}IsTruncated") != "true":
        return uploads, {}
    after = {"key-marker": _text(page, "NextKeyMarker"), "upload-id-marker": page.findtext("{*}NextUploadIdMarker")}
    return uploads, {name: value for name, value in after.items() if value}


def completing(etags: Sequence[str]) -> bytes:
    """Return the list of parts that ends an upload, by the entity tags that their PUTs were answered with."""
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()


def _upload(each: ET.Element, *, escaped: bool) -> Upload:
    key = _text(each, "Key")
    begun_at = datetime.fromisoformat(_text(each, "Initiated"))
    return Upload(unquote_plus(key) if escaped else key, _text(each, "UploadId"), begun_at)


def _parsed(answer: Answer) -> ET.Element:
    try:
        return ET.fromstring(answer.body)  # noqa: S314 - of the deployment's own store; expat bounds expansions
    except ET.ParseError as error:
        raise StoreUnavailable("the object store answers what is no XML") from error


def _text(element: ET.Element, name: str) -> str:
    text = element.findtext(f"{{*}}{name}")
    if not text:
        raise StoreUnavailable(f"the object store's answer has no {name}")
    return text
