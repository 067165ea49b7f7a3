"""Where a server may listen without keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from server.access.principal import Access
from server.access.start import Unprotected, check_early, check_start, is_loopback
from server.settings import Settings
from tests.server.access.test_principal import Stored, key

LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"]
REACHABLE = [
    "0.0.0.0",
    "::",
    "",
    "192.168.0.4",
    "fe80::1",
    "shop.example",
    "localhost.example",
    "127.0.0.1.example",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_loopback_it_says_that_there_are_no_keys(host: str) -> None:
    assert is_loopback(host)
    line = check_start(Access(Stored()), host)
    assert line is not None
    assert line.startswith("no API keys: ")
    assert host in line


@pytest.mark.parametrize("host", REACHABLE)
def test_where_others_may_reach_it_it_does_not_start(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(Unprotected, match=r"multilora keys create.*--data-dir.*MULTILORA_ADMIN_KEY"):
        check_start(Access(Stored()), host)


@pytest.mark.parametrize("host", [*LOOPBACK, *REACHABLE])
def test_with_keys_it_starts_anywhere(host: str) -> None:
    assert check_start(Access(Stored(), SecretStr("an-operator's-secret")), host) is None
    assert check_start(Access(Stored(secret=key("use"))), host) is None


def test_what_can_have_no_key_is_refused_before_a_base_is_loaded(tmp_path: Path) -> None:
    check_early(Settings(data_dir=tmp_path))
    with pytest.raises(Unprotected, match="--host ::"):
        check_early(Settings(data_dir=tmp_path, host="::"))
    check_early(Settings(data_dir=tmp_path, host="::", admin_key=SecretStr("an-operator's-secret")))
    check_early(Settings(data_dir=tmp_path, host="::", database_url="postgresql://somewhere/registry"))
    (tmp_path / "registry.sqlite3").touch()
    check_early(Settings(data_dir=tmp_path, host="::"))
