"""Checkpoints: whole or not there, the newest two to go on from, the result's config last."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.folder import STATE, RunFolder
from training.run.checkpoint import CONFIG, publish, write_checkpoint


def adapter(folder: Path) -> None:
    (folder / CONFIG).write_text("{}")
    (folder / "adapter_model.safetensors").write_text(folder.name)


def state(folder: Path) -> None:
    folder.mkdir()
    (folder / "state.json").write_text("{}")


def written(tmp_path: Path, *steps: int) -> RunFolder:
    run = RunFolder(tmp_path / "run-1")
    for step in steps:
        write_checkpoint(run, step, adapter, state)
    return run


def test_the_newest_two_keep_their_state(tmp_path: Path) -> None:
    run = written(tmp_path, 1, 2, 10)
    assert run.steps() == [1, 2, 10]
    assert [(run.checkpoint(step) / STATE).is_dir() for step in run.steps()] == [False, True, True]
    assert all((run.checkpoint(step) / CONFIG).is_file() for step in run.steps())
    assert run.latest() == run.checkpoint(10)


def test_what_broke_off_is_no_checkpoint_and_is_cleared_away(tmp_path: Path) -> None:
    run = written(tmp_path, 1)

    def broken(folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(run, 2, adapter, broken)
    assert run.steps() == [1]
    assert run.latest() == run.checkpoint(1)
    write_checkpoint(run, 2, adapter, state)
    assert run.steps() == [1, 2]
    assert not [path for path in run.checkpoints.iterdir() if path.name.startswith(".")]


def test_the_result_is_there_with_its_config_and_not_before(tmp_path: Path) -> None:
    run = written(tmp_path, 1, 2)
    seen: list[list[str]] = []

    def beside(folder: Path) -> None:
        seen.append(sorted(path.name for path in folder.iterdir() if path.is_file()))
        (folder / "README.md").write_text("card")

    publish(run, 1, beside)
    assert seen == [["adapter_model.safetensors"]]
    assert sorted(path.name for path in run.path.iterdir()) == [
        "README.md",
        CONFIG,
        "adapter_model.safetensors",
        "run",
    ]
    first = run.checkpoint(1) / "adapter_model.safetensors"
    assert (run.path / first.name).read_bytes() == first.read_bytes()
