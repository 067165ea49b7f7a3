"""The figures of a run as a file; what becomes of jobs is in test_supervisor.py."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from server.jobs.outcomes import gate_failure, metrics_csv
from training.events import Evaluated, Event, Progress, Started, event_to_json
from training.folder import RunFolder


def test_one_row_for_each_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert metrics_csv(run) is None
    run.run.mkdir()
    events: list[Event] = [
        Started(0.0, 2, 1, 2, 3, 4),
        Progress(1, 0.5, 0.01, 1.0, 2.0, 3.0, 4),
        Progress(2, float("nan"), 0.02, 1.0, 2.0, 3.0, 4, 0.75),
        Evaluated(2, 0.25, 0.5, "exact_match", 0.0),
    ]
    run.events.write_text("".join(json.dumps(event_to_json(event)) + "\n" for event in events))
    text = metrics_csv(run)
    assert text is not None
    first, second = csv.DictReader(text.splitlines())
    assert (first["step"], first["train_loss"], first["valid_loss"]) == ("1", "0.5", "")
    assert (second["train_loss"], second["train_mean_token_accuracy"], second["valid_loss"]) == (
        "",
        "0.75",
        "0.25",
    )


def test_a_gate_that_is_not_passed_is_told_with_its_figures() -> None:
    failure = gate_failure({"reason": "exact_match 0.1 is below the base's 0.5"})
    assert failure.code == "gate_not_passed"
    assert "exact_match 0.1 is below the base's 0.5" in failure.message
