"""`multilora tenants`: quotas change one by one."""

from __future__ import annotations

import pytest

from adapters.registry.records import Quota
from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Scripted


def test_quotas_that_are_not_named_stay(ask: Run, live: Live) -> None:
    assert (
        ask("tenants", "set", "firm", "--max-rank", "8", "--max-bytes", "2GiB", "--weight", "0.5").code == 0
    )
    assert live.registry.tenants.get("firm").quota == Quota(max_rank=8, max_bytes=2 * 2**30, weight=0.5)
    ended = ask("tenants", "set", "firm", "--max-rank", "none", "--tokens-per-minute", "1000")
    assert live.registry.tenants.get("firm").quota == Quota(
        max_bytes=2 * 2**30, weight=0.5, tokens_per_minute=1000
    )
    words = [line.split() for line in ended.out.splitlines()]
    assert ["tenant", "firm"] in words
    assert ["rank", "no", "bound"] in words
    assert ["tokens/min", "1000"] in words
    row = next(line.split() for line in ask("tenants", "ls").out.splitlines() if line.startswith("firm"))
    assert row[:11] == ["firm", "-", "2.0", "GiB", "-", "-", "1000", "-", "-", "0.5", row[10]]
    assert "firm" in [tenant["id"] for tenant in ask("tenants", "ls", "--json").json["data"]]


def test_only_empty_tenants_go(ask: Run, live: Live) -> None:
    assert ask("tenants", "set", "leaving").code == 0
    key = live.key("use", "publish", "admin", tenant="leaving")
    assert ask("push", "last", live.adapter(1), "--key", key).code == 0
    assert ask("tenants", "rm", "leaving").code == Exit.CONFLICT
    assert ask("rm", "last", "--yes", "--key", key).code == 0
    assert ask("tenants", "rm", "leaving").out == "removed tenant leaving\n"
    assert ask("ls", "--key", key).code == Exit.NOT_ALLOWED
    assert ask("tenants", "rm", "leaving").code == Exit.NOT_FOUND


def test_only_operators_may(ask: Run, live: Live) -> None:
    admin = live.key("admin", "publish", "use")
    assert ask("tenants", "ls", "--key", admin).code == Exit.NOT_ALLOWED
    assert ask("sweep", "--key", admin).code == Exit.NOT_ALLOWED


def test_a_quota_that_is_used_up(ask: Run, live: Live) -> None:
    assert ask("tenants", "set", "small", "--max-versions", "1").code == 0
    key = live.key("publish", "use", tenant="small")
    assert ask("push", "one", live.adapter(1), "--key", key).code == 0
    ended = ask("push", "two", live.adapter(2), "--key", key)
    assert (ended.code, ended.err.count("\n")) == (Exit.NOT_ALLOWED, 1)


@pytest.mark.parametrize(
    "words",
    [
        ("set", "Firm"),
        ("set", "firm", "--max-rank", "-1"),
        ("set", "firm", "--max-bytes", "2GB"),
        ("set", "firm", "--weight", "0"),
        ("set", "firm", "--weight", "nan"),
        ("rm", "../keys"),
    ],
)
def test_wrong_command_lines_send_nothing(run: Run, server: Scripted, words: tuple[str, ...]) -> None:
    assert run("tenants", *words).code == Exit.USAGE
    assert server.asked == []
