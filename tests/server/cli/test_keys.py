"""`multilora keys`: a secret is printed once, to stdout alone."""

from __future__ import annotations

import re
import time

import pytest

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live
from tests.server.cli.scripted import Scripted


def test_made_used_listed_and_revoked(ask: Run, live: Live) -> None:
    made = ask("keys", "create", "of tests", "--scope", "use", "--scope", "publish", "--expires", "2h")
    assert made.code == 0
    secret = made.out.removesuffix("\n")
    assert re.fullmatch(r"ml-[0-9a-f]{12}-[\w-]{43}", secret)
    key_id = f"key-{secret[3:15]}"
    assert made.err.startswith(f"{key_id} of tenant default: use, publish until ")
    assert secret not in made.err
    assert ask("ls", "--key", secret).code == 0
    assert ask("keys", "ls", "--key", secret).code == Exit.NOT_ALLOWED

    listed = ask("keys", "ls")
    assert secret not in listed.out
    row = next(line for line in listed.out.splitlines() if line.startswith(key_id))
    assert "of tests" in row
    assert "use,publish" in row
    found = next(
        key for key in ask("keys", "ls", "--tenant", "default", "--json").json["data"] if key["id"] == key_id
    )
    assert abs(found["expires"] - time.time() - 7200) < 60

    assert ask("keys", "revoke", key_id).out == f"revoked {key_id}\n"
    assert ask("ls", "--key", secret).code == Exit.NOT_ALLOWED
    assert ask("keys", "revoke", "key-000000000000").code == Exit.NOT_FOUND


def test_keys_of_other_tenants(ask: Run) -> None:
    assert ask("keys", "create", "--scope", "use", "--tenant", "keyless").code == Exit.NOT_FOUND
    assert ask("tenants", "set", "keyless").code == 0
    assert (
        ask("keys", "create", "--scope", "use", "--tenant", "keyless", "--json").json["tenant"] == "keyless"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("create", "a"),
        ("create", "--scope", "everything"),
        ("create", "a\nb", "--scope", "use"),
        ("create", "--scope", "use", "--expires", "soon"),
        ("create", "--scope", "use", "--expires", "0d"),
        ("create", "--scope", "use", "--data-dir", "a", "--database-url", "b"),
        ("revoke", "ml-0123456789ab-not-an-id"),
    ],
)
def test_wrong_command_lines_send_nothing(run: Run, server: Scripted, words: tuple[str, ...]) -> None:
    ended = run("keys", *words)
    assert ended.code == Exit.USAGE
    assert "not-an-id" not in ended.err
    assert server.asked == []
