"""`multilora promote`, `rollback`, `canary`, against the true rules of aliases."""

from __future__ import annotations

import pytest

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Scripted


def test_out_and_back(ask: Run, live: Live) -> None:
    for alpha in (1, 2, 3):
        assert ask("push", "moved", live.adapter(alpha), "--no-promote").code == 0
    assert ask("promote", "moved@2").out == "moved@default: 2, revision 2\n"
    assert ask("canary", "moved@3", "10%").out == "moved@default: 3:10% 2:90%, revision 3\n"
    assert ask("rollback", "moved").out == "moved@default: 2, revision 4\n"
    assert ask("rollback", "moved").out == "moved@default: 1, revision 5\n"
    ended = ask("rollback", "moved")
    assert (ended.code, ended.err.count("\n")) == (Exit.CONFLICT, 1)
    assert ask("promote", "moved@3", "--alias", "prod", "--expected", "0").code == 0
    assert ask("promote", "moved@prod").out == "moved@default: 3, revision 6\n"


def test_a_revision_that_has_changed_since(ask: Run, live: Live) -> None:
    for alpha in (1, 2):
        assert ask("push", "raced", live.adapter(alpha)).code == 0
    assert ask("promote", "raced@1", "--expected", "1").code == Exit.CONFLICT
    assert live.registry.resolve("raced").version == 2
    assert ask("promote", "raced@1", "--expected", "2").code == 0


def test_versions_that_are_not_there(ask: Run, live: Live) -> None:
    assert ask("push", "lonely", live.adapter(1)).code == 0
    assert ask("promote", "lonely@7").code == Exit.NOT_FOUND
    assert ask("canary", "nobody@1", "5").code == Exit.NOT_FOUND


@pytest.mark.parametrize(
    "words",
    [
        ("canary", "a@1", "101"),
        ("canary", "a@1", "-5"),
        ("canary", "a@1", "half"),
        ("canary", "a@1"),
        ("promote", "a@1", "--expected", "-1"),
        ("promote", "a@1", "--alias", "Prod"),
        ("promote", "a@1", "--alias", "1"),
        ("promote", "A@1"),
        ("promote", "a@1/../../keys"),
        ("rollback", "a@1"),
        ("rollback", ".."),
    ],
)
def test_wrong_command_lines_send_nothing(run: Run, server: Scripted, words: tuple[str, ...]) -> None:
    assert run(*words).code == Exit.USAGE
    assert server.asked == []
