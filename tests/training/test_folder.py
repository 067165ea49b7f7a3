"""The layout of a run's folder."""

from __future__ import annotations

from pathlib import Path

from training.folder import STATE, RunFolder


def test_checkpoints_are_found_by_their_names_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert (run.steps(), run.latest()) == ([], None)
    for name in ("step-00000010", "step-00000002", ".step-00000011.part", "step-3", "notes"):
        (run.checkpoints / name).mkdir(parents=True)
    assert run.steps() == [2, 10]
    assert run.checkpoint(10).name == "step-00000010"


def test_the_newest_with_a_state_is_gone_on_from(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        run.checkpoint(step).mkdir(parents=True)
    assert run.latest() is None
    for step in (1, 2):
        (run.checkpoint(step) / STATE).mkdir()
    assert run.latest() == run.checkpoint(2)


def test_all_but_the_result_is_below_one_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for path in (run.spec, run.events, run.curve, run.tensorboard, run.checkpoints):
        assert path.is_relative_to(run.run)
