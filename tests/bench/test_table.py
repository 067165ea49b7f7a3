"""The page of results: from made-up reports, and as it lies in the repository."""

from __future__ import annotations

from pathlib import Path

from bench.__main__ import CHART, PAGE
from bench.chart import throughput_chart
from bench.reports import Report, read_reports
from bench.table import results_page
from tests.bench.test_targets import THROUGHPUT

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
MACHINE = {"processor": "P", "flags": ["avx2"], "cores": 2, "torch": "2"}
REPORT: Report = {
    "measure": "throughput",
    "shape": "135m",
    "date": "2026-01-02",
    "machine": MACHINE,
    "foreign cores": [0.1, 0.3, 0.2],
    "notes": ["a note"],
    "cases": THROUGHPUT,
}


def test_rows_say_what_was_reached() -> None:
    page = results_page({("throughput", "135m"): REPORT}, [])
    rows = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in page.splitlines()}

    vllm = "base-only, 8 clients, against vLLM's CPU build with LoRA off"
    peft = "8 adapters, 8 clients, against PEFT's mixed batch in process (its faster type)"
    assert (vllm, "135m", "2x (2 to 3)", "at least 2x", "reached") in rows
    assert (vllm, "0.5b", "", "at least 1.4x", "not measured") in rows
    assert (peft, "135m", "3x (2 to 3)", "at least 3.5x", "**missed**") in rows
    assert ("base", "100 (90 to 110)", "", "", "3") in rows
    assert ("throughput", "135m", "2026-01-02", "P, avx2", "2", "0.20 of 2", "a note") in rows


def test_the_page_and_the_chart_are_not_stale() -> None:
    reports = read_reports(FOLDER)
    chart = throughput_chart(reports)
    assert chart is not None
    assert (FOLDER / CHART).read_text() == chart, "run: python -m bench report"
    assert (FOLDER / PAGE).read_text() == results_page(reports, [CHART]), "run: python -m bench report"
