"""Delays from the histogram of a metrics page."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from bench.heartbeat import METRIC, delays, read_histogram


def page(*delays: float) -> str:
    registry = CollectorRegistry()
    histogram = Histogram(METRIC, "text", buckets=(0.001, 0.01, 0.1), registry=registry)
    for delay in delays:
        histogram.observe(delay)
    return generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("more", "late", "longest"),
    [((0.0005,), 0, 0.001), ((0.0005, 0.005), 0, 0.01), ((0.05, 0.0001), 1, 0.1), ((3.0,), 1, 0.2)],
)
def test_only_what_was_gained_counts(more: tuple[float, ...], late: int, longest: float) -> None:
    before = (0.05, 0.0001)
    figures = delays(read_histogram(page(*before)), read_histogram(page(*before, *more)))

    assert figures == {"beats": len(more), "late": late, "longest": longest}


def test_a_server_without_the_metric() -> None:
    assert read_histogram("# nothing\n") == {}
