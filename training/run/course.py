"""What every run does, alone or beside others: its folder, its beginning, its end."""

from __future__ import annotations

import fcntl
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy
import torch

from training.events import Advised, Evaluated, Finished, Report, Started
from training.folder import STATE, RunFolder
from training.methods import save
from training.report.board import TensorBoardLog
from training.report.card import write_card
from training.report.curves import Curves
from training.report.evaluation import Measure, evaluate
from training.report.lineage import write_lineage
from training.report.origin import Origin
from training.report.picture import draw
from training.run.checkpoint import CONFIG, publish
from training.run.exact import precision_of
from training.run.journal import Journal
from training.run.prepare import Work
from training.run.record import check_record, keep_record
from training.run.result import RunResult, TrainingError
from training.run.state import SavedState, load_state
from training.run.watch import Standing, Training, Watch
from training.spec import TrainSpec, require


class Course:
    """A run from its preparation to its end.

    Attributes:
        saved: where it goes on from; None: it begins.
        done: optimizer steps that were taken before.
        ended: why there is no step left to take; empty: there is.
    """

    def __init__(
        self,
        work: Work,
        run: RunFolder,
        report: Report,
        resume: bool,
        in_place: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """`in_place`: inside it `work.model` is complete, to be counted, saved and evaluated."""
        self._work, self._run, self._in_place = work, run, in_place
        self.saved = _saved(run, work, resume)
        self.done = 0 if self.saved is None else self.saved.step
        self._standing = Standing() if self.saved is None else Standing(**self.saved.progress)
        self.ended = self._standing.ended(work.spec, self.done, work.steps)
        self._board = TensorBoardLog(run.tensorboard)
        self._journal = Journal(run.events, (self._board, report), self.done)
        with in_place():
            self._sizes: tuple[int, int] = work.model.get_nb_trainable_parameters()

    def watch(
        self, trainer: Training, stop: Callable[[], bool], hook: Callable[[int], None] | None = None
    ) -> Watch:
        """What goes along with the trainer; see there."""
        return Watch(
            trainer,
            self._run,
            self._journal,
            self.done,
            self._work.steps,
            save=self._save,
            evaluate=self._evaluate if self._work.validation else None,
            hook=hook,
            stop=stop,
            standing=self._standing,
        )

    def begin(self) -> None:
        """Tell it."""
        work = self._work
        rows, validation = len(work.rows), len(work.validation)
        self._journal.tell(Started(time.time(), work.steps, *self._sizes, rows, validation, self.done))
        if work.skipped and not self.done:
            self._journal.tell(Advised(0, "skipped", work.skipped))

    def end(self, watch: Watch) -> RunResult:
        """Tell it, and publish the result of a run that is complete."""
        result = self._result(watch.reason or self.ended, watch.step)
        finished = Finished(result.steps, result.reason, result.seconds, result.loss, result.trained_tokens)
        self._journal.tell(finished)
        curves = self._draw()
        if result.complete:
            origin = replace(self._work.origin, step=result.best_step)
            publish(self._run, result.best_step or result.steps, partial(_describe, origin, curves))
        return result

    def close(self) -> None:
        """It is over, however it ended; of what broke off there is a curve too, which may show why."""
        if Curves(self._journal.past).finished is None:
            with suppress(Exception):  # what broke it off is what is to be told
                self._draw()
        self._journal.close()
        self._board.close()

    def _draw(self) -> Curves:
        curves = Curves(self._journal.past)
        if curves.progress:
            draw(curves, self._run.curve, title=f"{self._run.path.name} on {self._work.base_name}")
        return curves

    def _save(self, folder: Path) -> None:
        work = self._work
        with self._in_place():
            save(work.model, folder, base_name=work.base_name, spec=work.spec)

    def _evaluate(self, step: int) -> Evaluated:
        work = self._work
        with self._in_place(), precision_of(work.spec, work.model.device):
            return evaluate(
                work.model, work.tokenizer, work.validation, work.spec, step, measure=_measure(work)
            )

    def _result(self, reason: str, step: int) -> RunResult:
        losses = self._journal.losses()
        evaluations = [event for event in self._journal.past if isinstance(event, Evaluated)]
        trainable, total = self._sizes
        return RunResult(
            folder=self._run.path,
            complete=reason != "stopped",
            reason=reason,
            losses=losses,
            steps=step,
            seconds=self._standing.seconds,
            trained_tokens=self._standing.trained_tokens,
            trainable_parameters=trainable,
            total_parameters=total,
            evaluation=evaluations[-1] if evaluations else None,
            best_step=self._standing.best_step if self._work.spec.patience is not None else None,
        )


def _measure(work: Work) -> Measure | None:
    """Of rows that are no tokens but pairs."""
    if work.spec.objective != "dpo":
        return None
    from training.preferences import measure_pairs  # TRL takes seconds to import

    return partial(measure_pairs, rows=work.validation, spec=work.spec, tokenizer=work.tokenizer)


def _describe(origin: Origin, curves: Curves, folder: Path) -> None:
    write_card(folder, origin, curves)
    write_lineage(folder, origin, curves)


def _saved(run: RunFolder, work: Work, resume: bool) -> SavedState | None:
    """Where to go on from; what was asked is kept, or compared with what was asked before."""
    newest = run.latest()
    if resume and run.spec.exists():
        check_record(run, work.record)
    else:
        keep_record(run, work.record)
    return None if newest is None else load_state(newest / STATE)


def check_folder(run: RunFolder, resume: bool) -> None:
    """See that nothing is written over. To resume a finished run gives its result once more.

    Raises:
        ValueError: something would be.
    """
    finished, unfinished = (run.path / CONFIG).exists(), run.latest() is not None
    require(
        not finished or (resume and unfinished),
        f"{run.path} has a finished adapter: choose another folder",
    )
    require(
        resume or not unfinished, f"{run.path} has an unfinished run: resume it, or choose another folder"
    )


@contextmanager
def only_here(run: RunFolder) -> Iterator[None]:
    """Nobody else trains in this folder, which is made.

    Raises:
        ValueError: somebody does.
    """
    run.run.mkdir(parents=True, exist_ok=True)
    with (run.run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process trains in {run.path}: wait, or choose another folder"
            ) from None
        yield


@contextmanager
def random_kept() -> Iterator[None]:
    """A run seeds the generators, and leaves them as they were."""
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)


@contextmanager
def memory_told(spec: TrainSpec) -> Iterator[None]:
    """Tell of memory that runs out inside as what it is.

    Raises:
        TrainingError: it did.
    """
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
