"""What a run tells, as JSON and back."""

from __future__ import annotations

import json

import pytest

from training.events import (
    Advised,
    Evaluated,
    Event,
    Finished,
    Progress,
    Sample,
    Saved,
    Started,
    event_from_json,
    event_to_json,
)

EVENTS: list[Event] = [
    Started(1.5, 3, 10, 100, 7, 2, 1),
    Progress(1, 0.1 + 0.2, 1e-3, 0.5, 100.0, 2.0, 4, 0.25),
    Evaluated(1, 0.5, None, "exact_match", 0.5, (Sample("a", "b", "c"), Sample("ä", "", "\n"))),
    Saved(1, "somewhere"),
    Advised(2, "spikes", "lower it"),
    Finished(2, "stopped", 3.0, 0.5, 8),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_what_is_read_is_what_was_told(event: Event) -> None:
    assert event_from_json(json.loads(json.dumps(event_to_json(event)))) == event
    assert event_to_json(event)["event"] == type(event).__name__.lower()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "there is no event None"),
        ({"event": "other"}, "there is no event 'other'"),
        ({"event": "saved", "step": 1}, "saved: .*folder"),
        ({"event": "saved", "step": 1, "folder": "x", "more": 1}, "saved: .*more"),
    ],
)
def test_what_is_no_event_is_refused(found: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        event_from_json(found)
