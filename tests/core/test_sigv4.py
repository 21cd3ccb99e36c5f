"""Signature Version 4 over the examples that AWS has published."""

from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import SplitResult, parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minio.credentials.credentials import Credentials as SdkCredentials
from minio.signer import presign_v4

from gurney.objects.sigv4 import (
    Credentials,
    Request,
    canonical_query,
    canonical_request,
    escaped_path,
    signature,
    signed_query,
)

S3 = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1")
SUITE = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1", "service")
AT = datetime(2013, 5, 24, tzinfo=UTC)
SUITE_AT = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
EMPTY = sha256(b"").hexdigest()


def test_a_presigned_get_is_signed_as_the_s3_guide_shows() -> None:
    """The S3 API reference, "Authenticating Requests: Using Query Parameters"."""
    query = signed_query(Request("GET", "examplebucket.s3.amazonaws.com", "/test.txt"), S3, AT, 86400)
    assert query == (
        "X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (
            Request(
                "GET", "examplebucket.s3.amazonaws.com", "/test.txt",
                headers={"range": "bytes=0-9", "x-amz-content-sha256": EMPTY, "x-amz-date": "20130524T000000Z"},
            ),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            Request(
                "GET", "examplebucket.s3.amazonaws.com", "/", {"lifecycle": ""},
                {"x-amz-content-sha256": EMPTY, "x-amz-date": "20130524T000000Z"},
            ),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            Request(
                "GET", "examplebucket.s3.amazonaws.com", "/", {"max-keys": "2", "prefix": "J"},
                {"x-amz-content-sha256": EMPTY, "x-amz-date": "20130524T000000Z"},
            ),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)  # fmt: skip
def test_headers_and_queries_are_signed_as_the_s3_guide_shows(request_: Request, expected: str) -> None:
    """The S3 API reference, "Signature Calculations for the Authorization Header", examples of GET."""
    assert signature(request_, S3, AT, EMPTY) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ({"Param2": "value2", "Param1": "value1"}, "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
        ({"ሴ": "bar"}, "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"),
    ],
)
def test_queries_are_signed_as_the_test_suite_has_them(query: dict[str, str], expected: str) -> None:
    """AWS's Signature Version 4 test suite: get-vanilla, -query-order-key-case, -utf8-query."""
    request = Request("GET", "example.amazonaws.com", "/", query, {"x-amz-date": "20150830T123600Z"})
    assert signature(request, SUITE, SUITE_AT, EMPTY) == expected


def test_bound_headers_are_signed_in_order_beside_the_host() -> None:
    """A URL that binds a header says so, and its header's value is part of what is signed."""
    request = Request("PUT", "s3.test:9000", "/b/k", headers={"if-none-match": "*"})
    query = parse_qs(signed_query(request, S3, AT, 900))
    assert query["X-Amz-SignedHeaders"] == ["host;if-none-match"]
    lines = canonical_request(request, "UNSIGNED-PAYLOAD").splitlines()
    bound = ["host:s3.test:9000", "if-none-match:*", "", "host;if-none-match"]
    assert lines == ["PUT", "/b/k", "", *bound, "UNSIGNED-PAYLOAD"]
    other = Request("PUT", "s3.test:9000", "/b/k", headers={"if-none-match": "x"})
    assert parse_qs(signed_query(other, S3, AT, 900))["X-Amz-Signature"] != query["X-Amz-Signature"]


@given(
    path=st.text("abcXYZ019-_.~/ +ä%", min_size=1).map(lambda text: f"/{text}"),
    query=st.dictionaries(st.text("abcXYZ-", min_size=1), st.text("abc019/+ =&%ä~"), max_size=4),
)
def test_the_sdk_signs_the_same(path: str, query: dict[str, str]) -> None:
    """Where the SDK can sign at all, that is without headers, its signature is ours, whatever path and query are."""
    request = Request("GET", "s3.test:9000", path, query)
    ours = signed_query(request, S3, AT, 900)
    theirs = presign_v4(
        method="GET",
        url=SplitResult("http", "s3.test:9000", escaped_path(path), canonical_query(query), ""),
        region="us-east-1",
        credentials=SdkCredentials(S3.access_key, S3.secret_key),
        date=AT,
        expires=900,
    )
    assert parse_qs(ours)["X-Amz-Signature"] == parse_qs(theirs.query)["X-Amz-Signature"]


def test_secrets_are_not_shown() -> None:
    """Who prints the credentials sees no secret."""
    assert S3.secret_key not in repr(S3)
