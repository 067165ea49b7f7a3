"""TensorBoard files, read back by TensorBoard itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.report.synthetic import evaluated, healthy, progress, run, started
from training.events import Advised, Evaluated, Event, Progress, Saved
from training.report.board import TensorBoardLog


def near(values: list[tuple[int, float]]) -> Any:
    """To float32, which is what the files hold."""
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in values]


def read(folder: Path) -> Any:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def points(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in found.Scalars(tag)]


def text(found: Any, tag: str) -> str:
    tensor = found.Tensors(f"{tag}/text_summary")[-1].tensor_proto
    said: str = tensor.string_val[0].decode()
    return said


def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    events = run(healthy, healthy, steps=30)
    log = TensorBoardLog(tmp_path)
    for event in [*events[:-1], Advised(30, "flat", "a higher rate"), events[-1]]:
        log(event)
    found = read(tmp_path)
    steps = [event for event in events if isinstance(event, Progress)]
    for tag, name in {
        "train/loss": "loss",
        "train/learning_rate": "learning_rate",
        "train/gradient_norm": "gradient_norm",
        "train/tokens_per_second": "tokens_per_second",
        "train/token_accuracy": "token_accuracy",
    }.items():
        assert points(found, tag) == near([(e.step, getattr(e, name)) for e in steps]), tag
    looks = [event for event in events if isinstance(event, Evaluated)]
    assert points(found, "validation/loss") == near([(e.step, e.loss) for e in looks])
    assert points(found, "validation/exact_match") == near([(e.step, e.score or 0) for e in looks])
    assert points(found, "validation/other") == [(e.step, 0.25) for e in looks]
    assert "RIVER!" in text(found, "samples/1")
    assert text(found, "advice/flat") == "a higher rate"


def test_a_resumed_run_is_one_line(tmp_path: Path) -> None:
    """The first process was killed after step 7, two steps behind its checkpoint."""
    first, second = TensorBoardLog(tmp_path), TensorBoardLog(tmp_path)
    begun: list[Event] = [started(10), *(progress(step, 2.0) for step in range(1, 6))]
    begun += [Saved(5, "step-00000005"), progress(6, 2.0), progress(7, 2.0), evaluated(7, 2.0)]
    for event in begun:
        first(event)
    resumed: list[Event] = [started(10, 5), *(progress(step, 1.0) for step in range(6, 11))]
    for event in [*resumed, evaluated(10, 1.0)]:
        second(event)
    second.close()
    found = read(tmp_path)
    assert points(found, "train/loss") == [(step, 2.0 if step <= 5 else 1.0) for step in range(1, 11)]
    assert points(found, "validation/loss") == [(10, 1.0)]
    first.close()


def test_a_log_without_a_beginning_still_writes(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path / "new")
    log(progress(1, 2.0))
    log.close()
    log.close()
    assert points(read(tmp_path / "new"), "train/loss") == [(1, 2.0)]
