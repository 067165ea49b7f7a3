"""Neighbouring rows of one adapter are one segment."""

from __future__ import annotations

import torch

from adapters.batch.placed import PlacedAdapter
from adapters.batch.segment import Segment, coalesce


def placed(digest: str) -> PlacedAdapter:
    """An adapter that does nothing."""
    return PlacedAdapter(digest, 0, {}, 0, 0, torch.empty(0))


A, B = placed("a"), placed("b")


def test_neighbours_with_one_adapter_are_joined() -> None:
    rows = [A, A, None, None, B, A]
    joined = coalesce([Segment(i, i + 1, owner) for i, owner in enumerate(rows)])
    assert [(s.start, s.stop, s.adapter) for s in joined] == [(0, 2, A), (2, 4, None), (4, 5, B), (5, 6, A)]


def test_an_adapter_loaded_anew_is_another() -> None:
    """Its matrices lie elsewhere, though the digest is the same."""
    assert len(coalesce([Segment(0, 1, A), Segment(1, 2, placed("a"))])) == 2
