"""The chart: well-formed, to scale, and only what was measured."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from bench.chart import bars_of, draw, throughput_chart
from tests.bench.test_targets import THROUGHPUT

_SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_to_scale() -> None:
    bars = bars_of(THROUGHPUT)
    root = ElementTree.fromstring(draw([("a < b", bars)]))
    widths = [float(rect.attrib["width"]) for rect in root.iter(f"{_SVG}rect")][1:]  # the first is the ground
    texts = [text.text for text in root.iter(f"{_SVG}text")]

    assert [bar.middle for bar in bars] == [100, 10, 90, 9, 33]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 0.1, 0.9, 0.09, 0.33], abs=0.01)
    assert texts[0] == "a < b"
    assert "100 (90 to 110)" in texts
    assert "transformers generate, in process" not in texts


def test_nothing_measured_is_no_chart() -> None:
    assert throughput_chart({}) is None
