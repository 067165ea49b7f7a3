"""Processes of the server get what it runs with, and none of its secrets."""

from __future__ import annotations

import pytest

from server.child import child_environment


@pytest.mark.parametrize(
    "name",
    [
        "MULTILORA_ADMIN_KEY",
        "MULTILORA_API_KEY",
        "MULTILORA_DATABASE_URL",
        "PGPASSWORD",
        "AWS_SECRET_ACCESS_KEY",
    ],
)
def test_secrets_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "secret-of-the-server")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = child_environment(OMP_NUM_THREADS="2")
    assert "secret-of-the-server" not in found.values()
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["OMP_NUM_THREADS"] == "2"
    assert "PATH" in found
