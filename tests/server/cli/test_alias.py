"""`multilora alias ls | set | rm`."""

from __future__ import annotations

import pytest

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Scripted


def test_made_shown_moved_and_removed(ask: Run, live: Live) -> None:
    for alpha in (1, 2):
        assert ask("push", "named", live.adapter(alpha)).code == 0
    assert ask("alias", "set", "named", "prod", "1:90", "2:10%", "--expected", "0").out == (
        "named@prod: 1:90% 2:10%, revision 1\n"
    )
    assert ask("alias", "set", "named", "prod", "1", "--expected", "0").code == Exit.CONFLICT
    assert ask("alias", "set", "named", "prod", "1", "--shadow", "2").out == (
        "named@prod: 1, shadow 2, revision 2\n"
    )
    rows = [line.split()[:4] for line in ask("alias", "ls", "named").out.splitlines()]
    assert rows == [
        ["ALIAS", "VERSIONS", "SHADOW", "REVISION"],
        ["default", "2", "-", "2"],
        ["prod", "1", "2", "2"],
    ]
    assert ask("alias", "rm", "named", "prod", "--expected", "7").code == Exit.CONFLICT
    assert ask("alias", "rm", "named", "prod").out == "removed named@prod\n"
    assert ask("alias", "rm", "named", "prod").code == Exit.NOT_FOUND
    assert ask("alias", "rm", "named", "default").code == Exit.CONFLICT
    assert [alias["alias"] for alias in ask("alias", "ls", "named", "--json").json["data"]] == ["default"]


def test_what_an_alias_can_not_mean(ask: Run, live: Live) -> None:
    assert ask("push", "unmeant", live.adapter(1)).code == 0
    for targets in (["1:50"], ["1:60", "1:40"]):
        ended = ask("alias", "set", "unmeant", "prod", *targets)
        assert (ended.code, ended.err.count("\n")) == (Exit.FAILED, 1)
    assert ask("alias", "set", "unmeant", "prod", "9").code == Exit.NOT_FOUND


@pytest.mark.parametrize(
    "words",
    [
        ("alias",),
        ("alias", "set", "a", "prod"),
        ("alias", "set", "a", "prod", "1:"),
        ("alias", "set", "a", "prod", "one"),
        ("alias", "set", "a", "3", "1"),
        ("alias", "set", "a", "history", "1"),
        ("alias", "rm", "a", "../../x"),
    ],
)
def test_wrong_command_lines_send_nothing(run: Run, server: Scripted, words: tuple[str, ...]) -> None:
    assert run(*words).code == Exit.USAGE
    assert server.asked == []
