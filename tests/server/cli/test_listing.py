"""`multilora ls`: a line for each adapter, or for each version of one."""

from __future__ import annotations

import pytest

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Answer, Scripted


def version(number: int, **fields: object) -> dict[str, object]:
    """As the API lists it."""
    known: dict[str, object] = {
        "id": f"legal@{number}",
        "tenant": "default",
        "name": "legal",
        "version": number,
        "state": "ready",
        "aliases": {},
        "rank": 8,
        "size": 293_888,
        "tier": "disk",
        "desired": "",
        "created": 0,
        "digest": "ab" * 32,
    }
    return {**known, **fields}


def lines(run: Run, server: Scripted, *versions: dict[str, object]) -> list[list[str]]:
    server.answers = [Answer(body={"object": "list", "data": [*versions], "has_more": False})]
    ended = run("ls")
    assert ended.code == 0
    return [line.split() for line in ended.out.splitlines()]


def test_one_line_for_each_adapter(run: Run, server: Scripted) -> None:
    found = lines(
        run,
        server,
        version(1, state="deprecated", aliases={"old": 100}),
        version(2, aliases={"default": 90, "prod": 100}, tier="device", desired="pinned", rank=16),
        version(4, aliases={"default": 10}),
        version(1, name="tone", id="tone@1", aliases={"default": 100}, size=100),
    )
    assert found == [
        ["NAME", "VERSIONS", "DEFAULT", "ALIASES", "STATE", "RANK", "SIZE", "WHERE"],
        [
            "legal",
            "1-2,4",
            "2:90%,4:10%",
            "old=1",
            "prod=2",
            "deprecated:1",
            "ready:2,4",
            "16",
            "287",
            "KiB",
            "device",
            "pinned",
        ],
        ["tone", "1", "1", "-", "ready", "8", "100", "B", "disk"],
    ]


def test_names_of_several_tenants_are_told_apart(run: Run, server: Scripted) -> None:
    found = lines(run, server, version(1), version(1, tenant="acme", id="acme/legal@1"))
    assert [line[0] for line in found[1:]] == ["default/legal", "acme/legal"]


def test_nothing_is_a_header_only(run: Run, server: Scripted) -> None:
    assert len(lines(run, server)) == 1


def test_what_others_wrote_can_not_steer_the_terminal(run: Run, server: Scripted) -> None:
    server.answers = [
        Answer(body={"object": "list", "data": [version(1, tier="\x1b[2J")], "has_more": False})
    ]
    assert "\x1b" not in run("ls").out
    assert "\x1b" not in run("ls", "--json").out


def test_versions_of_one(ask: Run, live: Live) -> None:
    for alpha in (1, 2):
        assert ask("push", "listed", live.adapter(alpha)).code == 0
    assert ask("rm", "listed@1", "--yes").code == 0
    rows = [line.split() for line in ask("ls", "listed").out.splitlines()]
    assert rows[0][:3] == ["VERSION", "STATE", "ALIASES"]
    assert [row[:3] for row in rows[1:]] == [["2", "ready", "default"]]
    rows = [line.split() for line in ask("ls", "default/listed", "--all").out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [["1", "deleted"], ["2", "ready"]]
    assert [entry["id"] for entry in ask("ls", "listed", "--json").json["data"]] == ["listed@2"]


def test_an_adapter_that_is_not_there_is_an_error(ask: Run) -> None:
    assert ask("ls", "nobody").code == Exit.NOT_FOUND


def test_tenants_see_what_is_theirs_and_what_is_shared(ask: Run, live: Live) -> None:
    assert ask("tenants", "set", "seeing").code == 0
    key = live.key("use", tenant="seeing")
    for name in ("hidden", "shown"):
        assert ask("push", name, live.adapter(1)).code == 0
    assert ask("share", "shown", "seeing").code == 0
    assert [entry["id"] for entry in ask("ls", "--key", key, "--json").json["data"]] == ["default/shown@1"]
    assert ask("show", "default/shown", "--key", key).code == 0
    assert ask("show", "default/hidden", "--key", key).code == Exit.NOT_FOUND
    assert ask("push", "mine", live.adapter(1), "--key", key).code == Exit.NOT_ALLOWED


@pytest.mark.parametrize("count", [3000])
def test_huge_lists(run: Run, server: Scripted, count: int) -> None:
    assert (
        len(lines(run, server, *(version(1, name=f"a{i}", id=f"a{i}@1") for i in range(count)))) == count + 1
    )
