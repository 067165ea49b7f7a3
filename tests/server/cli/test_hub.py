"""`hf:owner/repo`: which files are downloaded, and what can go wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from server.cli.exits import Exit
from tests.server.cli.conftest import Run
from tests.server.cli.live import Live


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, live: Live) -> list[Any]:
    """The hub has an adapter of each repository; what it was asked for."""
    asked: list[Any] = []

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        if repository == "away/away":
            raise LocalEntryNotFoundError("no network")
        if repository == "no/repo":
            raise OSError("first line\nsecond line")
        folder = tmp_path / "snapshot"
        shutil.copytree(live.adapter(1), folder, dirs_exist_ok=True)
        if repository == "only/pickle":
            (folder / "adapter_model.safetensors").unlink()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_an_adapter_of_the_hub_is_published(ask: Run, hub: list[Any]) -> None:
    assert ask("push", "hubbed", "hf:owner/my.repo@refs/pr/1", "--json").json["id"] == "hubbed@1"
    repository, revision, files = hub[0]
    assert (repository, revision) == ("owner/my.repo", "refs/pr/1")
    assert "adapter_model.safetensors" in files
    assert not [file for file in files if not file.endswith((".json", ".safetensors"))]


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("hf:away/away", Exit.FAILED, "the hub can't be reached"),
        ("hf:no/repo", Exit.FAILED, "hf:no/repo: first line\n"),
        ("hf:only/pickle", Exit.FAILED, "only safetensors are taken"),
        ("hf:alone", Exit.USAGE, "is not like hf:owner/repo"),
        ("hf:a/b/c", Exit.USAGE, "is not like hf:owner/repo"),
    ],
)
def test_what_the_hub_has_not(ask: Run, hub: list[Any], source: str, code: Exit, says: str) -> None:
    ended = ask("push", "hubless", source)
    assert (ended.code, ended.err.count("\n")) == (code, 1)
    assert says in ended.err
