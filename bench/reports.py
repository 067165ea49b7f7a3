"""Results as JSON files: one for each measure and shape, with the raw runs and where they come from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bench.machine import describe
from bench.rounds import Figures, Rounds
from bench.setting import Bench

Cases = dict[str, list[Figures]]
Report = dict[str, Any]
Reports = dict[tuple[str, str], Report]
"""By measure and shape."""


def write_report(measure: str, bench: Bench, done: Rounds, folder: Path) -> Path:
    """Write `MEASURE-SHAPE.json` into `folder`; returns its path."""
    report: Report = {
        "measure": measure,
        "shape": bench.shape,
        "date": time.strftime("%Y-%m-%d"),
        "setting": bench.setting,
        "machine": describe(),
        **done.as_json(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{measure}-{bench.shape}.json"
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return path


def read_reports(folder: Path) -> Reports:
    """Every report in `folder`."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {(report["measure"], report["shape"]): report for report in reports}
