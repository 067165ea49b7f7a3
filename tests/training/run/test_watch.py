"""What happens after each step: when it is evaluated and saved, and when the run ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.run.stand import Told
from training.events import Evaluated, Progress, Saved
from training.folder import RunFolder
from training.run.checkpoint import CONFIG
from training.run.exact import StepNumbers
from training.run.journal import Journal
from training.run.watch import Standing, Watch
from training.spec import TrainSpec


class Stepper:
    """Takes steps of nothing."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec, self.numbers = spec, StepNumbers(0.5, 40, 10, 4, 0.25, 1e-3)
        self.kept: dict[str, Any] = {}

    def save_state(self, folder: Path, progress: Mapping[str, Any]) -> None:
        folder.mkdir()
        self.kept = dict(progress)


def taken(
    folder: Path,
    spec: TrainSpec,
    losses: Mapping[int, float] | None = None,
    *,
    steps: int = 10,
    stop_at: int = 0,
    before: Standing | None = None,
    done: int = 0,
) -> tuple[Watch, Told, Stepper]:
    """A run with these validation losses; None: without validation rows."""
    told, stepper = Told(), Stepper(spec)
    watch = Watch(
        stepper,
        RunFolder(folder),
        Journal(folder / "events.jsonl", [told]),
        done,
        steps,
        save=lambda half: (half / CONFIG).touch(),
        evaluate=None if losses is None else lambda step: Evaluated(step, losses[step], None, "f1", None),
        hook=None,
        stop=lambda: watch.step == stop_at,
        standing=before or Standing(),
    )
    control = SimpleNamespace(should_training_stop=False)
    for step in range(done + 1, steps + 1):
        watch.on_step_end(None, SimpleNamespace(global_step=step), control)
        if control.should_training_stop:
            break
    assert control.should_training_stop
    return watch, told, stepper


def steps(told: Told, kind: type[Any]) -> list[int]:
    return [event.step for event in told.of(kind)]


@pytest.mark.parametrize(
    ("total", "evaluate", "save", "evaluated", "saved"),
    [
        (20, None, None, list(range(2, 21, 2)), list(range(2, 21, 2))),
        (7, None, None, list(range(1, 8)), list(range(1, 8))),
        (7, 3, None, [3, 6, 7], [3, 6, 7]),
        (7, 3, 2, [3, 6, 7], [2, 4, 6, 7]),
        (7, 100, 100, [7], [7]),
    ],
)
def test_when_it_is_evaluated_and_saved(
    total: int,
    evaluate: int | None,
    save: int | None,
    evaluated: list[int],
    saved: list[int],
    tmp_path: Path,
) -> None:
    spec = TrainSpec(evaluate_every=evaluate, save_every=save)
    watch, told, _ = taken(tmp_path, spec, dict.fromkeys(range(total + 1), 1.0), steps=total)
    assert (steps(told, Evaluated), steps(told, Saved)) == (evaluated, saved)
    assert (watch.reason, watch.step) == ("done", total)


def test_it_ends_after_as_many_worse_looks_as_patience(tmp_path: Path) -> None:
    losses = {1: 3.0, 2: 2.0, 3: 2.0, 4: 1.0, 5: 2.0, 6: 3.0, 7: 0.5}
    watch, told, stepper = taken(tmp_path, TrainSpec(evaluate_every=1, save_every=9, patience=2), losses)
    assert (watch.reason, watch.step) == ("early_stopped", 6)
    assert (watch.standing.best_step, watch.standing.best_loss, watch.standing.worse) == (4, 1.0, 2)
    assert steps(told, Saved) == [1, 2, 4, 6]  # each best so far, and the end
    assert stepper.kept == asdict(watch.standing)


def test_what_it_knows_of_the_best_goes_on_with_it(tmp_path: Path) -> None:
    before = Standing(seconds=100.0, trained_tokens=30, best_step=1, best_loss=1.0, worse=1)
    spec = TrainSpec(evaluate_every=1, patience=2)
    watch, _, _ = taken(tmp_path, spec, {4: 2.0}, before=before, done=3)
    assert (watch.reason, watch.step, watch.standing.trained_tokens) == ("early_stopped", 4, 40)
    assert 100 < watch.standing.seconds < 110


def test_it_is_stopped_after_a_step_and_saved(tmp_path: Path) -> None:
    watch, told, _ = taken(tmp_path, TrainSpec(save_every=9), stop_at=4)
    assert (watch.reason, watch.step, steps(told, Saved)) == ("stopped", 4, [4])


@pytest.mark.parametrize(("stop_at", "planned"), [(3, [True]), (4, [True, False]), (10, [True] * 4)])
def test_a_checkpoint_says_whether_it_is_only_there_because_of_the_stop(
    stop_at: int, planned: list[bool], tmp_path: Path
) -> None:
    _, told, _ = taken(tmp_path, TrainSpec(save_every=3), stop_at=stop_at)
    assert [event.planned for event in told.of(Saved)] == planned


def test_to_stop_at_the_last_step_is_to_be_done(tmp_path: Path) -> None:
    watch, _, _ = taken(tmp_path, TrainSpec(), stop_at=10)
    assert watch.reason == "done"


def test_a_step_s_numbers(tmp_path: Path) -> None:
    _, told, _ = taken(tmp_path, TrainSpec())
    found = told.of(Progress)
    first = replace(found[0], tokens_per_second=0, seconds_left=0)
    assert first == Progress(1, 0.5, 1e-3, 0.25, 0, 0, 10, 0.4)
    assert [event.trained_tokens for event in found] == [10 * step for step in range(1, 11)]
    assert found[-1].seconds_left == 0
    assert all(event.seconds_left > 0 for event in found[:-1])


@pytest.mark.parametrize(
    ("worse", "patience", "step", "reason"),
    [(0, 2, 9, ""), (2, 2, 9, "early_stopped"), (5, None, 9, ""), (2, 2, 10, "done")],
)
def test_why_it_ends(worse: int, patience: int | None, step: int, reason: str) -> None:
    assert Standing(worse=worse).ended(TrainSpec(patience=patience), step, 10) == reason
