"""Which rows are multiplied together, and which by themselves."""

from __future__ import annotations

import pytest
import torch

from adapters.batch import forms
from adapters.batch.forms import short_segments
from adapters.batch.placed import PlacedAdapter
from adapters.batch.segment import Segment


def adapter(digest: str, parameters: int = 1000, modules: int = 10) -> PlacedAdapter:
    return PlacedAdapter(digest, 4 * parameters, {}, parameters, modules, torch.empty(0))


def row(lengths: list[tuple[int, PlacedAdapter | None]]) -> list[Segment[PlacedAdapter]]:
    segments: list[Segment[PlacedAdapter]] = []
    start = 0
    for length, owner in lengths:
        segments.append(Segment(start, start + length, owner))
        start += length
    return segments


A, B = adapter("a"), adapter("b")


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wasted row of one foreign adapter costs as much as 1/10 of a segment."""
    monkeypatch.setattr(forms, "CONCATENATED_RATE", 1000.0)
    monkeypatch.setattr(forms, "SEGMENT_SECONDS", 1.0)


def test_decode_rows_are_concatenated() -> None:
    segments = row([(1, A), (1, B), (2, None), (3, A)])
    assert short_segments(segments) == segments


def test_long_prefill_goes_by_segment() -> None:
    assert short_segments(row([(500, A), (500, B)])) == []


def test_a_step_with_both_is_split_between_them() -> None:
    segments = row([(1, A), (1, B), (500, A), (600, B)])
    assert short_segments(segments) == segments[:2]


def test_one_adapter_has_nothing_to_be_concatenated_with() -> None:
    assert short_segments(row([(1, A), (3, None), (1, A)])) == []
    assert short_segments(row([(1, None)])) == []


def test_the_waste_grows_with_the_other_adapters() -> None:
    many = [adapter(str(i)) for i in range(40)]
    assert short_segments(row([(1, one) for one in many[:8]])) != []
    assert short_segments(row([(1, one) for one in many])) == []
