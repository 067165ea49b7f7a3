"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.cli.exits import Failed
from server.cli.folders import written


def test_the_folder_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a"
    with written(target) as folder:
        (folder / "x").write_text("new")
        assert not target.exists()
    assert (target / "x").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    for name in (Path("a"), Path("../b"), Path("./c/")):
        with written(name) as folder:
            (folder / "x").write_text("")
        assert (name / "x").is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a"
    target.mkdir()
    (target / "x").write_text("old")

    def fail() -> None:
        with written(target, ["x"]) as folder:
            (folder / "x").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert (target / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_appeared_meanwhile_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "a"

    def late() -> None:
        with written(target):
            target.mkdir()
            (target / "x").write_text("somebody else's")

    with pytest.raises(Failed, match="not empty"):
        late()
    assert (target / "x").read_text() == "somebody else's"


def test_an_exchange_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    target.mkdir()
    (target / "x").write_text("old")
    rename = os.rename

    def refuse(source: Path, destination: Path) -> None:
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(Failed, match="No space left"), written(target, ["x"]) as folder:
        (folder / "x").write_text("new")
    assert (target / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
