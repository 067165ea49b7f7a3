"""One run: from examples to an adapter folder, by transformers' Trainer and PEFT."""

from __future__ import annotations

import fcntl
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch

from training.events import Advised, Evaluated, Event, Finished, Report, Started
from training.folder import STATE, RunFolder
from training.methods import save, step_hook
from training.report.evaluation import evaluate
from training.run.checkpoint import CONFIG, publish
from training.run.exact import precision_of
from training.run.journal import Journal
from training.run.prepare import Work, prepare
from training.run.record import check_record, keep_record
from training.run.result import RunResult, TrainingData, TrainingError
from training.run.state import SavedState, load_state
from training.run.trainer import make_trainer
from training.run.watch import Standing, Watch
from training.spec import TrainSpec, require


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
    _check_folder(run, resume)
    run.run.mkdir(parents=True, exist_ok=True)
    with _alone(run), _random_kept(), _memory_told(spec):
        work = prepare(spec, base, data, parent)
        return _go(work, run, report, stop, resume)


def _evaluation(work: Work) -> Callable[[int], Evaluated]:
    def look(step: int) -> Evaluated:
        with precision_of(work.spec, work.model.device):
            return evaluate(work.model, work.tokenizer, work.validation, work.spec, step)

    return look


def _go(work: Work, run: RunFolder, report: Report, stop: Callable[[], bool], resume: bool) -> RunResult:
    spec, model = work.spec, work.model
    saved = _saved(run, work, resume)
    done = 0 if saved is None else saved.step
    standing = Standing() if saved is None else Standing(**saved.progress)
    journal = Journal(run.events, report, done)
    trainable, total = model.get_nb_trainable_parameters()
    trainer = make_trainer(work.spec, model, work.tokenizer, work.rows, work.steps, run.run)
    watch = Watch(
        trainer,
        run,
        journal,
        work.steps,
        save=lambda folder: save(model, folder, base_name=work.base_name, spec=spec),
        evaluate=_evaluation(work) if work.validation else None,
        hook=step_hook(model, spec),
        stop=stop,
        standing=standing,
    )
    trainer.add_callback(watch)
    try:
        journal.tell(
            Started(time.time(), work.steps, trainable, total, len(work.rows), len(work.validation), done)
        )
        if work.skipped and not done:
            journal.tell(Advised(0, "skipped", work.skipped))
        if done < work.steps:
            trainer.run(saved)
        result = _result(work, run, journal, watch, trainable, total)
        journal.tell(
            Finished(result.steps, result.reason, result.seconds, result.loss, result.trained_tokens)
        )
        if result.complete:
            publish(run, result.best_step or result.steps, lambda folder: None)
        return result
    finally:
        journal.close()


def _result(
    work: Work, run: RunFolder, journal: Journal, watch: Watch, trainable: int, total: int
) -> RunResult:
    standing = watch.standing
    losses = journal.losses()
    evaluations = [event for event in journal.past if isinstance(event, Evaluated)]
    reason = watch.reason or "done"
    best = standing.best_step if work.spec.patience is not None else None
    return RunResult(
        folder=run.path,
        complete=reason != "stopped",
        reason=reason,
        losses=losses,
        steps=len(losses),
        seconds=standing.seconds,
        trained_tokens=standing.trained_tokens,
        trainable_parameters=trainable,
        total_parameters=total,
        evaluation=evaluations[-1] if evaluations else None,
        best_step=best,
    )


def _saved(run: RunFolder, work: Work, resume: bool) -> SavedState | None:
    """Where to go on from; what was asked is kept, or compared with what was asked before."""
    newest = run.latest()
    if resume and run.spec.exists():
        check_record(run, work.record)
    else:
        keep_record(run, work.record)
    return None if newest is None else load_state(newest / STATE)


def _check_folder(run: RunFolder, resume: bool) -> None:
    """See that nothing is written over."""
    require(not (run.path / CONFIG).exists(), f"{run.path} has a finished adapter: choose another folder")
    unfinished = run.latest() is not None
    require(
        resume or not unfinished, f"{run.path} has an unfinished run: resume it, or choose another folder"
    )


@contextmanager
def _alone(run: RunFolder) -> Iterator[None]:
    """Nobody else trains in this folder."""
    with (run.run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process trains in {run.path}: wait, or choose another folder"
            ) from None
        yield


@contextmanager
def _random_kept() -> Iterator[None]:
    """A run seeds the generators, and leaves them as they were."""
    python, numbers = random.getstate(), numpy.random.get_state()
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if used else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)


@contextmanager
def _memory_told(spec: TrainSpec) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
        if not short:
            raise
        raise TrainingError(
            "out_of_memory",
            f"memory ran out at batch_size {spec.batch_size}, max_length {spec.max_length}: make batch_size "
            "smaller and accumulation larger, or turn gradient_checkpointing on",
        ) from error
