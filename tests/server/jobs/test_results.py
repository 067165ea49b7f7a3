"""The files that a job gives besides its adapter."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from server.jobs.results import metrics_csv, result_files
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


def test_half_a_line_of_a_process_that_was_killed_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.run.mkdir()
    line = json.dumps(event_to_json(Progress(1, 0.5, 0.01, 1.0, 2.0, 3.0, 4)))
    run.events.write_bytes(f"{line}\n{line[:30]}".encode() + b"\xe4")
    text = metrics_csv(run)
    assert text is not None
    assert len(text.splitlines()) == 2


def test_a_card_and_a_lineage_are_of_what_was_published(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.run.mkdir()
    (tmp_path / "README.md").write_text("# Card")
    (tmp_path / "lineage.json").write_text("{}")
    run.curve.write_bytes(b"\x89PNG")
    assert result_files(run, "ftjob-1", published=True) == {}, "it took no step"
    run.events.write_text(json.dumps(event_to_json(Progress(1, 0.5, 0.01, 1.0, 2.0, 3.0, 4))))
    found = result_files(run, "ftjob-1", published=True)
    names = ["step_metrics.csv", "ftjob-1-card.md", "ftjob-1-curve.png", "ftjob-1-lineage.json"]
    assert list(found) == names
    assert found["ftjob-1-curve.png"] == b"\x89PNG"
    assert list(result_files(run, "ftjob-1", published=False)) == [names[0], names[2]]
    run.curve.unlink()
    assert list(result_files(run, "ftjob-1", published=False)) == names[:1]
