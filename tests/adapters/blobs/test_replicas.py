"""Two registries on one Postgres and one bucket, over the real protocols."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.base import BaseSpec
from adapters.blobs.blobs import Blobs
from adapters.blobs.local import WEIGHTS_FILE
from adapters.errors import AdapterNotFound, InvalidAdapter, RegistryUnavailable
from adapters.registry.registry import Registry
from tests import s3
from tests.adapters.blobs.stand import remote
from tests.adapters.conftest import AdapterFiles
from tests.adapters.registry.conftest import Shop

SECONDS = 1.0


@pytest.fixture
def replicas(
    tmp_path: Path,
    postgres_url: str,
    base: BaseSpec,
    files: AdapterFiles,
    bucket: s3.S3Bucket,
    front: s3.Proxy,  # the way to the bucket
) -> Iterator[tuple[Shop, Registry, Registry]]:
    shop = Shop(tmp_path, postgres_url, base, files)
    first, second = (
        shop.open(name, blobs=Blobs(tmp_path / name, remote(bucket.url))) for name in ("one", "two")
    )
    yield shop, first, second
    shop.close()


def digest_of(registry: Registry, ref: str) -> str:
    """Once it is known here, within a second."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            return registry.resolve(ref).digest
        except AdapterNotFound:
            assert time.monotonic() < end, f"{ref} was not seen within a second"
            time.sleep(0.01)


def test_what_one_publishes_the_other_serves(
    replicas: tuple[Shop, Registry, Registry], bucket: s3.S3Bucket, front: s3.Proxy
) -> None:
    shop, first, second = replicas
    shop.publish(first, "tone", 1)
    shop.publish(second, "legal", 2)
    for registry, ref in ((second, "tone"), (first, "legal")):
        digest = digest_of(registry, ref)
        registry.hold(digest)
        assert registry.load(digest).digest == digest
        registry.release(digest)

    front.misbehave = s3.failing(1000, 503)
    with pytest.raises(RegistryUnavailable, match="the blob store s3://"):
        shop.publish(first, "late", 3)
    assert first.load(digest_of(first, "legal")).digest == digest_of(first, "legal")  # it is here
    front.misbehave = lambda request: None
    assert shop.publish(first, "late", 3) == "late@1"


def test_damage_in_the_bucket_reaches_no_answer_and_a_sweep_repairs_it(
    replicas: tuple[Shop, Registry, Registry], bucket: s3.S3Bucket
) -> None:
    shop, first, second = replicas
    shop.publish(first, "tone", 1)
    digest = digest_of(second, "tone")
    key = bucket.key(WEIGHTS_FILE)
    data = bytearray(bucket.get(key))
    data[-1] ^= 1
    bucket.put(key, bytes(data))
    second.hold(digest)
    with pytest.raises(InvalidAdapter, match=f"{WEIGHTS_FILE} of stored adapter {digest[:12]}"):
        second.load(digest)
    assert first.sweep().quarantined == (digest,)
    assert any(key.startswith(f"quarantine/{digest}-") for key in bucket.list())
    assert second.load(digest).digest == digest
