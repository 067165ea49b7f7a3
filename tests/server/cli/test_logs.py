"""`multilora logs`: one line for each change, and on as they are made."""

from __future__ import annotations

import json

import pytest

from server.cli import logs
from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Answer, Scripted, refusal


def entry(number: int, subject: str = "legal@1", **fields: object) -> dict[str, object]:
    known = {"id": number, "time": 0, "tenant": "default", "actor": "key-1", "action": "publish"}
    return {**known, "subject": subject, "before": None, "after": None, **fields}


def page(*entries: dict[str, object], more: bool = False) -> Answer:
    return Answer(body={"object": "list", "data": [*entries], "has_more": more})


def test_changes_of_one_adapter(ask: Run, live: Live) -> None:
    for alpha in (1, 2):
        assert ask("push", "logged", live.adapter(alpha)).code == 0
    assert ask("push", "logged-too", live.adapter(1)).code == 0
    assert ask("promote", "logged@1").code == 0
    lines = ask("logs", "logged").out.splitlines()
    assert lines
    assert all("logged@" in line or "  logged  " in line for line in lines)
    assert "logged@default" in lines[-1]
    everything = ask("logs").out.splitlines()
    assert len(everything) > len(lines)
    one = [json.loads(line) for line in ask("logs", "logged@1", "--json").out.splitlines()]
    assert {entry["subject"] for entry in one} == {"logged@1"}
    assert ask("logs", "nobody").out == ""


def test_only_admins_see_it(ask: Run, live: Live) -> None:
    assert ask("logs", "--key", live.key("use", "publish")).code == Exit.NOT_ALLOWED


def test_a_line_says_what_changed(run: Run, server: Scripted) -> None:
    moved = entry(1, action="alias.set", before={"a": 1, "b": [1]}, after={"a": 1, "b": [2], "c": "\x1b"})
    server.answers = [page(moved)]
    assert run("logs").out == (
        '1970-01-01 00:00:00Z  default  key-1  alias.set  legal@1  b [1] -> [2], c "\\u001b"\n'
    )


def test_pages_are_followed(run: Run, server: Scripted) -> None:
    server.answers = [page(entry(1), entry(2), more=True), page(entry(5))]
    assert len(run("logs").out.splitlines()) == 3
    assert [asked.query["after"] for asked in server.asked] == ["0", "2"]


def test_following_shows_each_change_once(
    run: Run, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.0)
    server.answers = [page(entry(1)), page(), page(entry(2), entry(3)), refusal(401, "revoked")]
    ended = run("logs", "legal", "--follow")
    assert (ended.code, ended.out.count("\n")) == (Exit.NOT_ALLOWED, 3)
    assert {asked.query["subject"] for asked in server.asked} == {"legal"}
    assert [asked.query["after"] for asked in server.asked] == ["0", "1", "1", "3"]
