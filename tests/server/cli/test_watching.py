"""`multilora jobs watch`: each event once, in order, to the end of the job."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from server.cli import watching
from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.scripted import Answer, Asked, Scripted

JOB = "ftjob-" + "0" * 24
PATH = f"/v1/fine_tuning/jobs/{JOB}"


def event(number: int, message: str, level: str = "info", **data: Any) -> dict[str, Any]:
    return {
        "id": f"ftevent-{number}",
        "object": "fine_tuning.job.event",
        "created_at": 0,
        "level": level,
        "type": "metrics" if data else "message",
        "message": message,
        "data": data or None,
    }


class Playing:
    """A job that tells another event at each look, and is over after the last."""

    def __init__(self, server: Scripted, events: list[dict[str, Any]], end: str, error: Any = None) -> None:
        self.events, self.end, self.error, self.looks = events, end, error, 0
        server.route = {f"GET {PATH}": self.job, f"GET {PATH}/events": self.page}

    def job(self, asked: Asked) -> Answer:
        self.looks += 1
        over = self.looks >= len(self.events)
        status = self.end if over else "running"
        return Answer(
            body={"object": "fine_tuning.job", "status": status, "error": self.error if over else None}
        )

    def page(self, asked: Asked) -> Answer:
        assert asked.query["order"] == "asc"
        ids = [each["id"] for each in self.events]
        start = ids.index(asked.query["after"]) + 1 if "after" in asked.query else 0
        return Answer(body={"object": "list", "data": self.events[start : self.looks], "has_more": False})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.0)


EVENTS = [
    event(1, "Created"),
    event(2, "Step 1/2", step=1, total_steps=2, train_loss=0.5, seconds_left=3.0),
    event(3, "the loss is\nflat \x1b[31m", "warn"),
    event(4, "Done"),
]


def test_each_event_is_told_once(run: Run, server: Scripted) -> None:
    Playing(server, EVENTS, "succeeded")
    ended = run("jobs", "watch", JOB)
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "1970-01-01 00:00:00Z  Created",
        "1970-01-01 00:00:00Z  Step 1/2",
        "1970-01-01 00:00:00Z  warn: the loss is\\nflat \\x1b[31m",
        "1970-01-01 00:00:00Z  Done",
    ]


def test_as_json_an_object_a_line(run: Run, server: Scripted) -> None:
    Playing(server, EVENTS, "succeeded")
    assert [json.loads(line) for line in run("jobs", "watch", JOB, "--json").out.splitlines()] == EVENTS


def test_how_it_ended_is_the_exit_code(run: Run, server: Scripted) -> None:
    Playing(server, EVENTS[:1], "failed", {"message": "line 3: no completion"})
    failed = run("jobs", "watch", JOB)
    assert failed.code == Exit.FAILED
    assert failed.err == f"multilora: {JOB} failed: line 3: no completion\n"
    Playing(server, EVENTS[:1], "cancelled")
    assert run("jobs", "watch", JOB).err == f"multilora: {JOB} was cancelled\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_steps_are_a_bar(run: Run, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    Playing(server, EVENTS, "succeeded")
    ended = run("jobs", "watch", JOB)
    assert "Step 1/2" not in ended.out
    assert ended.out.count("\n") == 3
    assert "loss 0.5, 3 s left" in screen.getvalue()
