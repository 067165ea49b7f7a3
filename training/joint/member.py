"""One job among others that share a base: what it feeds to the next pass, and its own optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from training.events import Report
from training.folder import RunFolder
from training.joint import JointJob
from training.joint.chance import drawing
from training.joint.layers import JobLayers
from training.joint.passes import Part, labels_of
from training.methods import load_trainable_state, trainable_state
from training.run.course import Course, check_folder, only_here
from training.run.exact import StepNumbers
from training.run.optimizer import make_optimizer, make_schedule
from training.run.order import Order
from training.run.prepare import LoadedBase, prepare_on
from training.run.result import RunResult, diverged
from training.run.state import SavedState, save_state


class Member:
    """A job that trains. To its `Watch` it is what a trainer is.

    Attributes:
        layers: its adapter.
        numbers: of the step that is going on.
        step: optimizer steps that were taken.
        result: what came out, once it has ended well.
    """

    def __init__(self, base: LoadedBase, job: JointJob, tell: Report, stop: Callable[[], bool]) -> None:
        """Begin the job, or go on with it from its newest checkpoint. The base is as it was afterwards.

        Raises:
            ValueError: what the job asks for is wrong, or it must train alone.
        """
        self.job, self.spec = job, job.spec
        self.numbers = StepNumbers()
        self.result: RunResult | None = None
        self._pending: list[tuple[int, ...]] = []
        self._before = torch.empty(0)
        with ExitStack() as stack:
            run = RunFolder(job.folder)
            check_folder(run, job.resume)
            stack.enter_context(only_here(run))
            self.layers = JobLayers(base.model, lambda: prepare_on(base, job.spec, job.data, job.parent))
            self._work = self.layers.work
            rows, seed = len(self._work.rows), self.spec.seed
            self._order = Order(rows, self.spec.batch_size, seed, self.spec.accumulation)
            self._generator = self.layers.adapter.generator.manual_seed(seed)
            self._optimizer = make_optimizer(self.spec, self.layers.parameters)
            self._schedule = make_schedule(self.spec, self._optimizer, self._work.steps)
            self._course = Course(self._work, run, tell, job.resume, self.layers.in_place)
            stack.callback(self._course.close)
            self._watch = self._course.watch(self, stop)
            self.step = self._course.done
            if self._course.saved is not None:
                self._go_on(self._course.saved)
            self._open = stack.pop_all()

    def start(self) -> None:
        """Tell that it begins. A job that had taken all its steps ends at once."""
        self._course.begin()
        if self._course.ended:
            self.result = self._course.end(self._watch)

    def part(self) -> Part:
        """Its rows in the next pass."""
        if not self._pending:
            self._begin_step()
        rows = [self._work.rows[index] for index in self._pending[0]]
        return Part(self.job.id, self.layers.adapter, rows, int(self.numbers.trained))

    def add(self, loss: float, correct: int) -> None:
        """What the pass gave for the part: known before anything is done with its gradients.

        Raises:
            TrainingError: the loss is no finite number.
        """
        self.numbers.loss += loss
        self.numbers.right = (self.numbers.right or 0) + correct
        self._check("the loss", loss)

    def passed(self) -> None:
        """The gradients of the part are there. If it was the step's last, take the step.

        Raises:
            TrainingError: a gradient is no finite number.
        """
        self._pending.pop(0)
        if self._pending:
            return
        norm = torch.nn.utils.clip_grad_norm_(self.layers.parameters, self.spec.max_grad_norm)
        self.numbers.gradient_norm = float(norm)
        self._check("a gradient", self.numbers.gradient_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.step += 1
        self._watch.on_step_end(None, SimpleNamespace(global_step=self.step), SimpleNamespace())
        if self._watch.reason:
            self.result = self._course.end(self._watch)

    def again(self) -> None:
        """Begin the step that is going on once more: a pass of it came to nothing."""
        self._optimizer.zero_grad()
        self._pending = []
        self._generator.set_state(self._before)

    def close(self) -> None:
        """It is over, however it ended."""
        self._open.close()

    def save_state(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """All that a resume needs, as a run of its own writes it and can go on from."""
        with drawing(self._generator), self.layers.in_place() as model:
            save_state(
                folder,
                step=self.step,
                trainable=trainable_state(model),
                optimizer=self._optimizer.state_dict(),
                schedule=self._schedule.state_dict(),
                progress=progress,
            )

    def _begin_step(self) -> None:
        self._before = self._generator.get_state()
        self._pending = self._order.step(self.step)
        rows = [self._work.rows[index] for part in self._pending for index in part]
        self.numbers = StepNumbers(
            tokens=sum(len(row.ids) for row in rows),
            trained=labels_of(rows),
            rate=float(self._schedule.get_last_lr()[0]),
        )

    def _go_on(self, saved: SavedState) -> None:
        with self.layers.in_place() as model:
            load_trainable_state(model, saved.trainable)
        self._optimizer.load_state_dict(saved.optimizer)
        self._schedule.load_state_dict(dict(saved.schedule))
        states = [saved.random["cpu"]] if self._generator.device.type == "cpu" else saved.random["cuda"]
        if states:  # a checkpoint made on a CPU has none of a GPU
            self._generator.set_state(states[0])

    def _check(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise diverged(f"{what} is {value}", self.step + 1, self.numbers.rate, self.spec.learning_rate)
