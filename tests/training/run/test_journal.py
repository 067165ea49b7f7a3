"""The journal: all that was told, in order, and without what will be told again."""

from __future__ import annotations

from pathlib import Path

from training.events import Advised, Evaluated, Event, Finished, Progress, Sample, Saved, Started
from training.report.curves import read_events
from training.run.journal import Journal

EVENTS: list[Event] = [
    Started(1.5, 3, 10, 100, 7, 2),
    Progress(1, 0.1 + 0.2, 1e-3, 0.5, 100.0, 2.0, 4, 0.25),
    Evaluated(1, 0.5, 0.75, "exact_match", 0.5, (Sample("a", "b", "c"),)),
    Saved(1, "somewhere"),
    Progress(2, 1e-17, 1e-3, 0.5, 100.0, 1.0, 8),
    Advised(2, "spikes", "lower it"),
    Finished(2, "stopped", 3.0, 0.5, 8),
]


def written(path: Path) -> list[object]:
    told: list[object] = []
    journal = Journal(path, [told.append])
    for event in EVENTS:
        journal.tell(event)
    journal.close()
    assert told == EVENTS
    return told


def test_what_was_told_can_be_read(tmp_path: Path) -> None:
    written(tmp_path / "run" / "events.jsonl")
    assert list(read_events(tmp_path / "run" / "events.jsonl")) == EVENTS


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    written(path)
    whole = path.read_bytes()
    for cut in range(2, 60):
        path.write_bytes(whole[:-cut])
        journal = Journal(path, [], step=2)
        journal.close()
        assert journal.past == EVENTS[:-1]
        assert list(read_events(path)) == EVENTS[:-1]


def test_a_resume_takes_back_what_will_happen_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    written(path)
    journal = Journal(path, [], step=1)
    assert journal.past == EVENTS[:4]
    assert journal.losses() == (0.1 + 0.2,)
    journal.tell(EVENTS[4])
    journal.close()
    assert list(read_events(path)) == EVENTS[:5]


def test_a_run_from_the_beginning_starts_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    written(path)
    Journal(path, []).close()
    assert list(read_events(path)) == []
