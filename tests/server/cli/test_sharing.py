"""`multilora share` and `unshare`."""

from __future__ import annotations

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live


def test_shared_listed_and_taken_back(ask: Run, live: Live) -> None:
    assert ask("push", "common", live.adapter(1)).code == 0
    assert ask("tenants", "set", "guest").code == 0
    assert ask("share", "common").out == "common is shared with nobody\n"
    assert ask("share", "common", "guest").out == "common is shared with guest\n"
    assert ask("share", "common", "*").out == "common is shared with everybody guest\n"
    assert ask("share", "common", "--json").json["tenants"] == ["*", "guest"]
    assert ask("unshare", "common", "*").out == "common is shared with guest\n"
    assert ask("unshare", "common", "guest").out == "common is shared with nobody\n"


def test_what_can_not_be_shared(ask: Run, live: Live) -> None:
    assert ask("share", "nobody", "stranger").code == Exit.NOT_FOUND
    assert ask("share", "common-too", "A Tenant").code == Exit.USAGE
