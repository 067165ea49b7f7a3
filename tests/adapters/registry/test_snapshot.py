"""Visible versions, and who needs which files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.errors import AdapterNotFound
from adapters.registry.records import AdapterVersion
from adapters.registry.snapshot import Snapshot

ONE = AdapterVersion("one", 1, "a" * 64, "b" * 64, 0.0, 1, 1, 1, ("q",))
TWO = replace(ONE, version=2, digest="c" * 64)
ELSEWHERE = replace(ONE, name="other", digest="d" * 64, base_digest="e" * 64)


def test_only_versions_of_this_base_are_visible() -> None:
    snapshot = Snapshot(ONE.base_digest)
    for version in (ONE, TWO, ELSEWHERE):
        snapshot.add(version)
    assert snapshot.all() == snapshot.versions("one") == (ONE, TWO)
    assert snapshot.versions("other") == ()
    assert len(snapshot) == 3
    assert not snapshot.is_unused(ELSEWHERE.digest)
    snapshot.discard(TWO)
    assert snapshot.versions("one") == (ONE,)
    snapshot.discard(ONE)
    assert snapshot.all() == ()


def test_held_files_are_in_use_until_the_last_release() -> None:
    snapshot = Snapshot(ONE.base_digest)
    snapshot.add(ONE)
    snapshot.hold(ONE.digest)
    snapshot.discard(ONE)
    snapshot.hold(ONE.digest)
    assert not snapshot.release(ONE.digest)
    assert not snapshot.is_unused(ONE.digest)
    assert snapshot.release(ONE.digest)
    assert snapshot.is_unused(ONE.digest)
    with pytest.raises(AdapterNotFound):
        snapshot.hold(ONE.digest)
