"""What happens after each step of a run: it is told, and at times evaluated and saved; it may end early."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from training.events import Evaluated, Progress, Saved
from training.folder import RunFolder
from training.report.advice import advise
from training.run.checkpoint import write_checkpoint
from training.run.exact import StepNumbers
from training.run.journal import Journal
from training.spec import TrainSpec

_WINDOW = 20
"""Steps over which speed is measured."""


@dataclass(slots=True)
class Standing:
    """How far a run is: saved with each checkpoint.

    Attributes:
        seconds: of training, in all its parts.
        best_step, best_loss: the evaluation with the lowest validation loss.
        worse: evaluations since then.
    """

    seconds: float = 0.0
    trained_tokens: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    worse: int = 0

    def ended(self, spec: TrainSpec, step: int, steps: int) -> str:
        """Why the run of `steps` ends after `step`; empty: it does not."""
        if step >= steps:
            return "done"
        return "early_stopped" if spec.patience is not None and self.worse >= spec.patience else ""


class Training(Protocol):
    """What takes the steps. `numbers`: of the last one."""

    spec: TrainSpec
    numbers: StepNumbers

    def save_state(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Write all that a resume needs."""
        ...


class Watch(TrainerCallback):  # type: ignore[misc]
    """Goes along with one trainer.

    Args:
        step: how many were taken before; steps: of the whole run.
        save: writes the PEFT folder of the model as it is now.
        evaluate: looks at the validation rows after so many steps; None: there are none.
        hook: called with the number of each step (from 1) while its gradients are there.

    Attributes:
        step: how many were taken.
        reason: why the run ended: `done`, `early_stopped` or `stopped`; empty while it goes on.
    """

    def __init__(
        self,
        trainer: Training,
        run: RunFolder,
        journal: Journal,
        step: int,
        steps: int,
        *,
        save: Callable[[Path], None],
        evaluate: Callable[[int], Evaluated] | None,
        hook: Callable[[int], None] | None,
        stop: Callable[[], bool],
        standing: Standing,
    ) -> None:
        self._trainer, self._run, self._journal, self._steps = trainer, run, journal, steps
        self._save, self._evaluate, self._hook, self._stop = save, evaluate, hook, stop
        self.standing = standing
        self.reason, self.step = "", step
        self._began = time.monotonic() - standing.seconds
        self._window: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=_WINDOW + 1)
        spec = trainer.spec
        self._every = spec.evaluate_every or max(1, -(-steps // 10))
        self._save_every = spec.save_every or self._every

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._hook is not None:
            self._hook(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = self.step = int(state.global_step)
        self._journal.tell(self._progress(step))
        last = step == self._steps
        best = False
        if self._evaluate is not None and (last or step % self._every == 0):
            best = self._judge(self._evaluate(step))
        spec = self._trainer.spec
        self.reason = self.standing.ended(spec, step, self._steps)
        if self.reason or step % self._every == 0:
            self._advise()
        if not self.reason and self._stop():
            self.reason = "stopped"
        planned = step % self._save_every == 0 or (best and spec.patience is not None)
        if self.reason or planned:
            self._checkpoint(step, planned or self.reason != "stopped")
        if self.reason:
            control.should_training_stop = True

    def _progress(self, step: int) -> Progress:
        numbers, standing = self._trainer.numbers, self.standing
        now = time.monotonic()
        standing.seconds = now - self._began
        trained = int(numbers.trained)
        standing.trained_tokens += trained
        self._window.append((now, int(numbers.tokens)))
        passed = max(now - self._window[0][0], 1e-9)
        taken = len(self._window) - 1
        return Progress(
            step=step,
            loss=float(numbers.loss),
            learning_rate=numbers.rate,
            gradient_norm=numbers.gradient_norm,
            tokens_per_second=sum(tokens for _, tokens in list(self._window)[1:]) / passed,
            seconds_left=(self._steps - step) * passed / taken,
            trained_tokens=standing.trained_tokens,
            token_accuracy=None if numbers.right is None else int(numbers.right) / max(trained, 1),
        )

    def _judge(self, evaluated: Evaluated) -> bool:
        """Tell it; whether it is the best so far."""
        self._journal.tell(evaluated)
        standing = self.standing
        better = standing.best_loss is None or evaluated.loss < standing.best_loss
        if better:
            standing.best_step, standing.best_loss, standing.worse = evaluated.step, evaluated.loss, 0
        else:
            standing.worse += 1
        return better

    def _advise(self) -> None:
        while (advice := advise(self._journal.past, self._trainer.spec)) is not None:
            self._journal.tell(advice)

    def _checkpoint(self, step: int, planned: bool) -> None:
        folder = write_checkpoint(
            self._run,
            step,
            self._save,
            lambda folder: self._trainer.save_state(folder, asdict(self.standing)),
        )
        self._journal.tell(Saved(step, str(folder), planned))
