"""`multilora ps`."""

from __future__ import annotations

import pytest

from server.cli.status import as_duration
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live


def test_what_is_kept_in_memory_is_shown(ask: Run, live: Live) -> None:
    assert ask("push", "resident", live.adapter(6), "--pin").code == 0
    out = ask("ps").out
    words = [line.split() for line in out.splitlines()]
    assert ["base", "tiny"] in words
    assert ["status", "ok"] in words
    row = next(row for row in words if row[:1] == ["resident@1"])
    assert (row[1], row[3]) == ("ready", "pinned")
    assert ask("ps", "--json").json["object"] == "status"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3660, "1 h 1 min"), (90_000, "1 d 1 h")]
)
def test_durations(seconds: int, shown: str) -> None:
    assert as_duration(seconds) == shown
