"""Whether a server trains, and what it says where it does not."""

from __future__ import annotations

import pytest

from server.jobs import service
from server.jobs.service import why_not
from server.settings import Settings


def test_it_trains_where_all_is_installed_unless_told_otherwise() -> None:
    assert why_not(Settings()) == ""
    assert why_not(Settings(training=False)) == "it runs with --no-training"


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "find_spec", lambda name: None if name in ("peft", "trl") else object())
    assert why_not(Settings()) == "peft, trl not installed there; pip install 'multilora[train]'"
