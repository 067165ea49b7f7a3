"""The picture of a run: written whole, for runs of every kind, without a display."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.training.report.synthetic import evaluated, healthy, progress, run, started
from training.events import Event
from training.report.curves import Curves
from training.report.picture import draw

PANELS = {"with scores": 8.2, "without": 5.8}


def colours(path: Path) -> set[tuple[int, int, int]]:
    with Image.open(path) as picture:
        found = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    assert found is not None
    return {colour for _, colour in found}  # type: ignore[misc]


def rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def test_it_has_every_line_in_its_colour(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    draw(Curves(run(healthy, healthy, noise=0.1)), path, title="lora, rank 8")
    assert {rgb(colour) for colour in ("#1f6fb2", "#d1495b", "#2a9d5c", "#7a5195")} <= colours(path)
    assert [each.name for each in tmp_path.iterdir()] == ["curve.png"]
    with Image.open(path) as picture:
        assert picture.size == (990, round(110 * PANELS["with scores"]))


@pytest.mark.parametrize("steps", [1, 400])
def test_runs_of_any_length(tmp_path: Path, steps: int) -> None:
    draw(Curves(run(healthy, healthy, steps=steps, every=1)), tmp_path / "curve.png")


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    events: list[Event] = [
        started(9),
        progress(1, 1.0),
        progress(2, float("nan")),
        progress(3, 0.0, float("inf")),
    ]
    draw(Curves([*events, evaluated(3, float("inf"))]), tmp_path / "curve.png")
    with pytest.raises(ValueError, match="no step"):
        draw(Curves([started(9)]), tmp_path / "none.png")


def test_it_needs_no_display_and_keeps_no_figure() -> None:
    code = (
        "import sys; from pathlib import Path; from training.report.picture import draw; "
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
