"""Curves out of events: a run that was killed and went on is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.report.synthetic import evaluated, healthy, progress, run, started
from training.events import Event, event_to_json
from training.report.curves import Curves, read_events, smoothed


def test_a_resumed_run_is_one_line() -> None:
    """Killed at step 7, gone on from the checkpoint of step 5: steps 6 and 7 are those of the second time."""
    first: list[Event] = [started(10)]
    first += [progress(step, 2.0) for step in range(1, 8)]
    first += [evaluated(5, 1.0), evaluated(7, 9.0)]
    second: list[Event] = [started(10, 5)]
    second += [progress(step, 1.0) for step in range(6, 11)]
    curves = Curves([*first, *second, evaluated(10, 0.5)])
    assert [each.step for each in curves.progress] == list(range(1, 11))
    assert [each.loss for each in curves.progress] == [2.0] * 5 + [1.0] * 5
    assert [(each.step, each.loss) for each in curves.evaluated] == [(5, 1.0), (10, 0.5)]


def test_the_best_is_the_first_of_the_lowest() -> None:
    losses = {10: 2.0, 20: 1.0, 30: 1.0, 40: float("nan")}
    curves = Curves(evaluated(step, loss) for step, loss in losses.items())
    assert curves.best is not None
    assert curves.best.step == 20
    assert Curves().best is None


def test_a_file_with_a_torn_line_gives_the_rest(tmp_path: Path) -> None:
    events = run(healthy, healthy, steps=20)
    lines = [json.dumps(event_to_json(event)) for event in events]
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    assert list(read_events(path)) == events[:-1]
    path.write_text("\n".join([*lines[:3], "[1]", '"text"', lines[3][:9], *lines[4:]]))
    assert list(read_events(path)) == events[:3] + events[4:]


def test_the_smooth_line_is_a_mean_around_each_value() -> None:
    assert smoothed([1.0, 2.0, 6.0, 2.0, 1.0], 3) == pytest.approx([1.0, 3.0, 10 / 3, 3.0, 1.0])
    assert smoothed([1.0, 2.0], 0) == [1.0, 2.0]
    ramp = [float(value) for value in range(50)]
    assert smoothed(ramp, 9) == pytest.approx(ramp)  # no lag
