"""`multilora deprecate`, `rm`, `preload`, `pin`, `unpin`."""

from __future__ import annotations

import io

import pytest

from adapters.errors import AdapterNotFound
from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Scripted


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


def test_deprecated_and_back(ask: Run, live: Live) -> None:
    assert ask("push", "ageing", live.adapter(1)).code == 0
    assert ask("deprecate", "ageing@1", "--", "-use another 漢").out == "ageing@1 is deprecated\n"
    assert live.registry.resolve("ageing").reason == "-use another 漢"
    assert ask("deprecate", "ageing", "--undo").out == "ageing@1 is ready\n"
    assert ask("deprecate", "ageing", "x", "--undo").code == Exit.USAGE
    assert ask("deprecate", "ageing").code == 0


def test_kept_in_memory(ask: Run, live: Live) -> None:
    assert ask("push", "loved", live.adapter(1)).code == 0
    assert ask("pin", "loved").out == "loved@1 stays in memory\n"
    assert live.registry.resolve("loved").desired == "pinned"
    assert ask("preload", "loved").out == "loved@1 is loaded at each start\n"
    assert ask("unpin", "loved", "--json").json["desired"] == ""


def test_a_version_that_is_aliased_stays(ask: Run, live: Live) -> None:
    for alpha in (1, 2):
        assert ask("push", "used", live.adapter(alpha)).code == 0
    ended = ask("rm", "used@2", "--yes")
    assert (ended.code, "default" in ended.err) == (Exit.CONFLICT, True)
    assert ask("rm", "used@1", "--yes").out == "deleted used@1\n"
    assert ask("alias", "set", "used", "prod", 2).code == 0
    assert ask("rm", "used", "--yes").code == Exit.CONFLICT
    assert ask("rm", "used", "--yes", "--force", "--drain", "0.1").out == "deleted used@2\n"
    assert ask("rm", "used", "--yes").code == Exit.NOT_FOUND


def test_requests_that_still_run_are_told_of(ask: Run, live: Live) -> None:
    assert ask("push", "busy", live.adapter(5)).code == 0
    digest = live.registry.resolve("busy").digest
    live.registry.hold(digest)
    try:
        ended = ask("rm", "busy", "--yes", "--drain", "0.1")
    finally:
        live.registry.release(digest)
    assert (ended.code, ended.out) == (0, "deleted busy@1; requests still finish on it\n")


def test_whoever_sits_at_a_terminal_is_asked(ask: Run, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    for alpha in (1, 2):
        assert ask("push", "asked", live.adapter(alpha)).code == 0
    for typed in ("", "n\n", "maybe\n"):
        monkeypatch.setattr("sys.stdin", Terminal(typed))
        ended = ask("rm", "asked")
        assert (ended.code, ended.out) == (Exit.FAILED, "")
        assert "Delete asked@1 asked@2? [y/N] " in ended.err
        assert live.registry.resolve("asked").version == 2
    monkeypatch.setattr("sys.stdin", Terminal("Yes\n"))
    assert ask("rm", "asked").out == "deleted asked@1 asked@2\n"
    with pytest.raises(AdapterNotFound):
        live.registry.resolve("asked")


def test_where_nobody_can_be_asked_it_has_to_be_said(
    run: Run, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    ended = run("rm", "a")
    assert (ended.code, "--yes" in ended.err) == (Exit.USAGE, True)
    assert server.asked == []


@pytest.mark.parametrize("drain", ["-1", "301", "nan", "soon"])
def test_drains_have_a_bound(run: Run, server: Scripted, drain: str) -> None:
    assert run("rm", "a", "--yes", "--drain", drain).code == Exit.USAGE
    assert server.asked == []
