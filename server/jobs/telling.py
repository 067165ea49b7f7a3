"""What a job's training tells, as its owner reads it: messages, figures, and the metrics of checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from training.events import Advised, Evaluated, Event, Finished, Progress, Started

Level = Literal["info", "warn", "error"]
_EVERY_SECONDS = 1.0
"""Between two events of steps: a job may take hundreds a second, and each event is a row."""
_MOST_CHARS = 500
"""Of each text of a sample."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event of a job. `is_metrics`: its data are figures of a step."""

    message: str
    data: dict[str, Any] | None = None
    level: Level = "info"
    is_metrics: bool = False


class Telling:
    """Of one job.

    Attributes:
        steps: of the whole run, once it has begun.
        trained_tokens: so far.
        seconds_left: by the last step; None before.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = 0
        self.trained_tokens = 0
        self.seconds_left: float | None = None
        self._clock = clock
        self._said = float("-inf")
        self._progress: Progress | None = None
        self._evaluated: Evaluated | None = None

    def hear(self, event: Event) -> Told | None:
        """What to say of an event; None if nothing."""
        if isinstance(event, Started):
            self.steps = event.steps
            return Told(_started(event))
        if isinstance(event, Progress):
            return self._step(event)
        if isinstance(event, Evaluated):
            self._evaluated = event
            return Told(self._at(event.step, _evaluation(event)), _evaluated_data(event), is_metrics=True)
        if isinstance(event, Advised):
            return Told(event.message, {"step": event.step, "kind": event.kind}, "warn")
        if isinstance(event, Finished) and event.reason == "early_stopped":
            return Told(f"The validation loss gets no better: training ends early, at step {event.step}")
        return None

    def metrics(self, step: int) -> dict[str, Any]:
        """Of a checkpoint, by OpenAI's names; what is not known is left out."""
        found: dict[str, Any] = {"step": step}
        if self._progress is not None and self._progress.step == step:
            found |= _known(
                train_loss=self._progress.loss, train_mean_token_accuracy=self._progress.token_accuracy
            )
        if self._evaluated is not None and self._evaluated.step == step:
            loss, accuracy = self._evaluated.loss, self._evaluated.token_accuracy
            found |= _known(valid_loss=loss, valid_mean_token_accuracy=accuracy)
            found |= _known(full_valid_loss=loss, full_valid_mean_token_accuracy=accuracy)
            found |= _known(**{**self._evaluated.scores, self._evaluated.metric: self._evaluated.score})
        return found

    def _step(self, event: Progress) -> Told | None:
        self._progress = event
        self.trained_tokens, self.seconds_left = event.trained_tokens, event.seconds_left
        now = self._clock()
        if now - self._said < _EVERY_SECONDS and event.step != self.steps:
            return None
        self._said = now
        data = _known(
            step=event.step,
            total_steps=self.steps,
            train_loss=event.loss,
            train_mean_token_accuracy=event.token_accuracy,
            learning_rate=event.learning_rate,
            gradient_norm=event.gradient_norm,
            tokens_per_second=event.tokens_per_second,
            seconds_left=event.seconds_left,
        )
        return Told(self._at(event.step, f"training loss={event.loss:.4f}"), data, is_metrics=True)

    def _at(self, step: int, text: str) -> str:
        return f"Step {step}/{self.steps}: {text}"


def _started(event: Started) -> str:
    rows = f"{event.train_rows} rows"
    if event.validation_rows:
        rows += f", {event.validation_rows} to validate on"
    share = 100 * event.trainable_parameters / max(1, event.total_parameters)
    begins = f"goes on after step {event.resumed_from} of" if event.resumed_from else "begins:"
    return (
        f"Training {begins} {event.steps} steps on {rows}; "
        f"{event.trainable_parameters} trainable parameters ({share:.2f}%)"
    )


def _evaluation(event: Evaluated) -> str:
    score = "" if event.score is None else f", {event.metric}={event.score:.4f}"
    return f"validation loss={event.loss:.4f}{score}"


def _evaluated_data(event: Evaluated) -> dict[str, Any]:
    data = _known(
        step=event.step,
        full_valid_loss=event.loss,
        full_valid_mean_token_accuracy=event.token_accuracy,
    )
    data |= _known(**{**event.scores, event.metric: event.score})
    if event.samples:
        data["samples"] = [
            {name: getattr(sample, name)[:_MOST_CHARS] for name in ("prompt", "wanted", "answer")}
            for sample in event.samples
        ]
    return data


def _known(**values: Any) -> dict[str, Any]:
    """Without what is not known, or no number: JSON has no word for that."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and (not isinstance(value, float) or math.isfinite(value))
    }
