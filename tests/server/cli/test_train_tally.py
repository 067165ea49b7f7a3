"""What a sweep says while it goes, on a terminal and elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from server.cli.train.tally import Tally
from training.events import Event, Finished, Progress, Saved, Started

STORY: list[tuple[str, Event]] = [
    ("a", Started(0.0, 4, 10, 100, 8, 0)),
    ("b", Started(0.0, 6, 10, 100, 8, 0, resumed_from=2)),
    ("a", Progress(1, 2.0, 0.1, 1.0, 10.0, 3.0, 5)),
    ("b", Progress(3, 2.0, 0.1, 1.0, 10.0, 3.0, 5)),
    ("a", Saved(1, "somewhere")),
    ("a", Finished(4, "done", 1.0, 0.25, 20)),
]


def tell(tally: Tally) -> Iterator[Event]:
    for run, event in STORY:
        tally(run, event)
        yield event


def test_elsewhere_there_is_a_line_for_each_that_ends(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(2)
    assert len(list(tell(tally))) == len(STORY)
    tally.close()
    said = capsys.readouterr()
    assert said.err == "a: done after 4 steps, loss 0.2500\n"
    assert said.out == ""


def test_on_a_terminal_one_bar_counts_all_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tally = Tally(2)
    bar: Any = tally._bar
    seen = [(bar.n, bar.total) for _ in tell(tally)]
    tally.close()
    assert seen == [(0, 4), (2, 10), (3, 10), (4, 10), (4, 10), (4, 10)]
    shown = capsys.readouterr().err
    assert "a: done after 4 steps" in shown
    assert "1 of 2 done" in shown
