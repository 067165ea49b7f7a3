"""Measures on a tiny shape: each runs, and what it says can be read. Those too many for CI: `make soak`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from bench.__main__ import MEASURES, main
from bench.heartbeat import METRIC
from bench.reports import read_reports

ONE_OF_EACH = {"throughput", "floor", "hot-swap", "joint"}
"""Against a server and its peers, in process, with uploads, of training."""


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


@pytest.mark.parametrize(
    "measures",
    [
        pytest.param(ONE_OF_EACH, id="one of each kind"),
        pytest.param([*MEASURES.keys() - ONE_OF_EACH], id="the others", marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(600)
def test_every_measure_runs(
    measures: Collection[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, output = tmp_path / "work", tmp_path / "out"
    for name in sorted(measures):
        code = main([name, "--shape", "tiny", "--quick", "--work", str(work), "--output", str(output)])
        assert code == 0, capsys.readouterr().err[-3000:]
    reports = read_reports(output)
    assert {measure for measure, _ in reports} == set(measures)
    for (measure, _), report in reports.items():
        assert report["cases"] or METRIC in str(report["notes"]), measure
        assert all(runs for runs in report["cases"].values()), measure
    assert "not measured" in capsys.readouterr().out
