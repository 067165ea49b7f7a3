"""`multilora keys create --data-dir`: the first key, before there is a server; on Postgres too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from adapters.limits import AdapterLimits
from adapters.registry.registry import Registry
from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import BASE, Live

OPERATOR = ("keys", "create", "boss", "--scope", "operator")


def test_the_first_key_opens_a_server_that_starts_later(multilora: Run, tmp_path: Path) -> None:
    made = multilora(*OPERATOR, "--data-dir", tmp_path / "new")
    assert (made.code, made.err.count("\n")) == (0, 1), made.err
    second = multilora("keys", "create", "--scope", "use", "--data-dir", tmp_path / "new")
    assert second.code == 0
    with Registry(tmp_path / "new", BASE, AdapterLimits()) as registry:
        key = registry.keys.authenticate(made.out.strip())
        assert key is not None
        assert (key.name, key.scopes, key.tenant) == ("boss", ("operator",), "default")
        assert registry.keys.authenticate(second.out.strip()) is not None
        assert registry.audit()[0].actor == "cli"


def test_libraries_say_nothing_beside_it(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "server.cli.main", *OPERATOR, "--data-dir", str(tmp_path)]
    made = subprocess.run(words, capture_output=True, text=True)
    assert (made.returncode, made.stdout.count("\n")) == (0, 1)
    assert made.stderr.endswith("It is not shown again.\n")
    assert made.stderr.count("\n") == 1, made.stderr


def test_it_has_to_be_an_operators(multilora: Run, tmp_path: Path) -> None:
    ended = multilora("keys", "create", "--scope", "use", "--data-dir", tmp_path)
    assert (ended.code, "--scope operator" in ended.err) == (Exit.FAILED, True)
    with Registry(tmp_path, BASE, AdapterLimits()) as registry:
        assert not registry.keys.any


def test_a_server_that_runs_would_not_notice(multilora: Run, live: Live) -> None:
    ended = multilora(*OPERATOR, "--data-dir", live.folder / "data")
    assert (ended.code, "in use by another server" in ended.err) == (Exit.CONFLICT, True)


def test_databases_that_are_none(multilora: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert multilora(*OPERATOR, "--data-dir", tmp_path / "file" / "x").code == Exit.FAILED
    assert multilora(*OPERATOR, "--database-url", "mysql://x").code == Exit.FAILED
    unreachable = "postgresql://nobody@127.0.0.1:1/none"
    assert multilora(*OPERATOR, "--database-url", unreachable).code == Exit.UNREACHABLE


def test_tenants_have_to_be_there(multilora: Run, tmp_path: Path) -> None:
    words = (*OPERATOR, "--tenant", "acme", "--data-dir", tmp_path)
    assert multilora(*words).code == Exit.NOT_FOUND


def test_replicas_on_a_shared_database_see_it(multilora: Run, tmp_path: Path, postgres_url: str) -> None:
    made = multilora(*OPERATOR, "--database-url", postgres_url)
    assert made.code == 0, made.err
    with Registry(tmp_path, BASE, AdapterLimits(), database_url=postgres_url) as registry:
        assert registry.keys.authenticate(made.out.strip()) is not None
