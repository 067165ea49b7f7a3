"""What goes into a run, and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.data import Example
from training.events import Evaluated

Code = Literal["diverged", "out_of_memory"]


class TrainingError(RuntimeError):
    """A run that can't go on. `code` says what kind of reason it has."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def diverged(what: str, step: int, rate: float, highest: float) -> TrainingError:
    """What to say where a number is none any more.

    Args:
        what: such as `the loss is nan`.
        step: the one that was to be taken, from 1.
        rate, highest: learning rate of that step, and of the run.
    """
    return TrainingError(
        "diverged",
        f"{what} at step {step}, at a learning rate of {rate:.2g} ({highest:g} at most): "
        "lower the learning rate, or warm up for longer",
    )


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The examples of a run. `files`: names and SHA-256 of where they come from, for the lineage."""

    train: Sequence[Example]
    validation: Sequence[Example] = ()
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave.

    Attributes:
        folder: a PEFT folder, if `complete`; else the run can be resumed.
        reason: `done`, `early_stopped` or `stopped`.
        losses: of each step, since the start of the run.
        seconds: of all its parts.
        trained_tokens: that counted in the loss.
        evaluation: the last one.
        best_step: whose checkpoint became the result; the last one without early stopping.
    """

    folder: Path
    complete: bool
    reason: str
    losses: tuple[float, ...]
    steps: int
    seconds: float
    trained_tokens: int
    trainable_parameters: int
    total_parameters: int
    evaluation: Evaluated | None = None
    best_step: int | None = None

    @property
    def loss(self) -> float:
        """Mean loss of the last tenth of the steps."""
        tail = self.losses[-max(1, self.steps // 10) :]
        return sum(tail) / len(tail) if tail else 0.0
