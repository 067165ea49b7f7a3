"""One run: from examples to an adapter folder, by transformers' Trainer and PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from training.events import Event, Report
from training.folder import RunFolder
from training.methods import step_hook
from training.run.course import Course, check_folder, memory_told, only_here, random_kept
from training.run.prepare import Work, prepare
from training.run.result import RunResult, TrainingData
from training.run.trainer import Supervised, make_trainer
from training.spec import TrainSpec

if TYPE_CHECKING:
    from training.preferences import PreferenceTrainer


def ignore(event: Event) -> None:
    """For who does not listen."""


def never() -> bool:
    """For who does not stop."""
    return False


def train(
    spec: TrainSpec,
    base: str | Path,
    data: TrainingData,
    folder: Path,
    *,
    report: Report = ignore,
    stop: Callable[[], bool] = never,
    resume: bool = False,
    parent: Path | None = None,
) -> RunResult:
    """Train an adapter into `folder`, which `training/folder.py` lays out.

    The same spec, base, data and thread count give the same bytes, however often the run was stopped and
    gone on with.

    Args:
        base: a folder or a hub id. Its files are only read.
        stop: asked after each step; when true the run saves a checkpoint and ends, not complete.
        resume: go on from the newest checkpoint, if there is one. A finished run gives its result once more.
        parent: a PEFT folder to go on from in place of a new adapter.

    Raises:
        ValueError: data, spec and base do not fit together; `folder` has a result or an unfinished run; or
            the run to go on with was asked something else.
        TrainingError: it diverged, or memory ran out; no adapter is published.
    """
    run = RunFolder(folder)
    check_folder(run, resume)
    with only_here(run), random_kept(), memory_told(spec):
        work = prepare(spec, base, data, parent)
        return _go(work, run, report, stop, resume)


def _go(work: Work, run: RunFolder, report: Report, stop: Callable[[], bool], resume: bool) -> RunResult:
    course = Course(work, run, report, resume)
    try:
        trainer = _trainer(work, run.run)
        watch = course.watch(trainer, stop, step_hook(work.model, work.spec))
        trainer.add_callback(watch)
        course.begin()
        if not course.ended:
            trainer.run(course.saved)
        return course.end(watch)
    finally:
        course.close()


def _trainer(work: Work, folder: Path) -> Supervised | PreferenceTrainer:
    """For the spec's objective."""
    if work.spec.objective == "dpo":
        from training.preferences import make_preference_trainer  # TRL takes seconds to import

        return make_preference_trainer(work.spec, work.model, work.tokenizer, work.rows, work.steps, folder)
    return make_trainer(work.spec, work.model, work.tokenizer, work.rows, work.steps, folder)
