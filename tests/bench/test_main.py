"""The whole benchmark once on a tiny shape: every measure runs and what it says can be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import MEASURES, main
from bench.heartbeat import METRIC
from bench.reports import read_reports

ROOT = Path(__file__).parents[2]


def test_a_measure_that_fails_is_told_and_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("bench.__main__.MEASURES", {"zipf": broken, "floor": broken})
    code = main(["all", "--shape", "tiny", "--work", str(tmp_path), "--output", str(tmp_path / "out")])

    assert code == 1
    said = capsys.readouterr().err
    assert "failed: zipf tiny, floor tiny" in said
    assert "no such thing" in said


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_measure_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "all", "--shape", "tiny", "--quick"]
    done = subprocess.run(
        [*command, "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = read_reports(tmp_path / "out")
    assert {measure for measure, _ in reports} == set(MEASURES)
    for (measure, _), report in reports.items():
        assert report["cases"] or METRIC in str(report["notes"]), measure
        assert all(runs for runs in report["cases"].values()), measure
    assert "not measured" in done.stdout
