"""A bucket for each test that asks for one, found through the environment as an operator would set it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import s3


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> s3.S3Bucket:
    """Empty, on a real server."""
    found = s3.new_bucket()
    s3.set_environment(monkeypatch, found.endpoint)
    return found


@pytest.fixture
def front(bucket: s3.S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Proxy]:
    """A proxy before that server, which the environment leads to."""
    with s3.proxy() as listening:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", listening.url)
        yield listening
