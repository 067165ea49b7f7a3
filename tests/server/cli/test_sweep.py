"""`multilora sweep`: what was found, and an exit code for what is lost."""

from __future__ import annotations

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Answer, Scripted


def test_a_true_sweep(ask: Run, live: Live) -> None:
    assert ask("push", "swept", live.adapter(7)).code == 0
    report = ask("sweep", "--json").json
    assert report["checked"] >= 1
    assert report["quarantined"] == report["missing"] == []


def test_what_is_lost_is_a_failure(run: Run, server: Scripted) -> None:
    report = {
        "object": "registry.sweep",
        "checked": 2,
        "quarantined": ["ab"],
        "missing": ["cd"],
        "removed": [],
    }
    server.answers = [Answer(body=report)]
    ended = run("sweep")
    assert ended.code == Exit.FAILED
    assert ended.out.splitlines() == [
        "checked      2",
        "quarantined  ab",
        "missing      cd",
        "removed      none",
    ]
    server.answers = [Answer(body={**report, "missing": []})]
    assert run("sweep").code == Exit.DONE
