"""When files go, against a snapshot and blobs of a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from adapters.base import BaseSpec
from adapters.blobs.blobs import Blobs
from adapters.registry.files import Files
from adapters.registry.keeping import Keeper
from adapters.registry.snapshot import Snapshot
from tests.adapters.conftest import LIMITS

DIGEST = "d" * 64
OTHER = "e" * 64


class Forgotten:
    """Blobs that note what is removed."""

    def __init__(self) -> None:
        self.digests: list[str] = []

    def forget(self, digest: str) -> None:
        self.digests.append(digest)

    def commit(self, staged: Path, digest: str) -> None:
        raise OSError("the disk is full")


class Bench:
    """A keeper, and what it told."""

    def __init__(self, base: BaseSpec) -> None:
        self.blobs, self.snapshot = Forgotten(), Snapshot(base.digest)
        self.keeper = Keeper(cast(Blobs, self.blobs), self.snapshot, Files(base, LIMITS))
        self.unused: list[str] = []
        self.keeper.on_unused = self.unused.append


@pytest.fixture
def bench(base: BaseSpec) -> Bench:
    return Bench(base)


def test_files_go_with_the_last_hold(bench: Bench) -> None:
    bench.snapshot.keep(DIGEST)
    bench.snapshot.keep(DIGEST)
    bench.keeper.release(DIGEST)
    bench.keeper.clear({DIGEST})
    assert bench.unused == bench.blobs.digests == []
    bench.keeper.release(DIGEST)
    assert bench.unused == bench.blobs.digests == [DIGEST]
    with pytest.raises(ValueError, match="is not held"):
        bench.keeper.release(DIGEST)


def test_a_request_that_ends_does_not_wait_for_a_removal(bench: Bench) -> None:
    """Its files go with the next removal."""
    bench.snapshot.keep(DIGEST)
    with bench.keeper.nobody_stores():
        bench.keeper.release(DIGEST)  # would wait for ever
        assert not bench.unused
    bench.keeper.clear({OTHER})
    assert sorted(bench.unused) == [DIGEST, OTHER]


def test_what_can_t_be_stored_is_not_held(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk is full"), bench.keeper.stored(tmp_path, DIGEST):
        raise AssertionError("it is not stored")
    assert bench.snapshot.holders(DIGEST) == 0
    assert bench.unused == [DIGEST]
