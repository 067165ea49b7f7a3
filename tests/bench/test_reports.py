"""A report that was written can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.reports import read_reports, write_report
from bench.rounds import Rounds
from bench.setting import Bench


def test_there_and_back(tmp_path: Path) -> None:
    done = Rounds({"base": [{"round": 0, "rate": 2.5}]}, [0.25], ["note"])
    path = write_report("zipf", Bench("tiny", tmp_path, repeats=3), done, tmp_path / "out")

    assert path.name == "zipf-tiny.json"
    (key, report), *rest = read_reports(tmp_path / "out").items()
    assert not rest
    assert key == ("zipf", "tiny")
    assert report["cases"] == done.cases
    assert (report["foreign cores"], report["notes"]) == ([0.25], ["note"])
    assert report["setting"]["repeats"] == 3
    assert str(tmp_path) not in path.read_text()


def test_only_numbers_that_json_knows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_report("zipf", Bench("tiny", tmp_path), Rounds({"a": [{"x": float("inf")}]}), tmp_path)
