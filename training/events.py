"""What a run tells while it goes: to a progress bar, a log, a curve, or the server that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins, or goes on after `resumed_from` steps. `time`: Unix seconds."""

    time: float
    steps: int
    trainable_parameters: int
    total_parameters: int
    train_rows: int
    validation_rows: int
    resumed_from: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """One optimizer step was taken.

    Attributes:
        loss: mean over the trained tokens (or rows) of the step.
        token_accuracy: share of them that the model would have said; None where it is not known.
        gradient_norm: before clipping.
        tokens_per_second: trained and other tokens without padding, over the last steps.
        seconds_left: to the end of the run.
        trained_tokens: that counted in the loss, since the start of the run.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    seconds_left: float
    trained_tokens: int
    token_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the validation data with what the model says now."""

    prompt: str
    wanted: str
    answer: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The validation rows were looked at.

    Attributes:
        loss: mean over their trained tokens (or rows).
        metric: what `score` is: `exact_match`, `accuracy`, `f1`, `token_accuracy`, `reward_accuracy`.
        scores: further ones, by name.
    """

    step: int
    loss: float
    token_accuracy: float | None
    metric: str
    score: float | None
    samples: tuple[Sample, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint is complete in `folder`: a PEFT folder, with all that a resume needs beside it.

    `planned`: it would also be there if nobody had stopped the run.
    """

    step: int
    folder: str
    planned: bool = True


@dataclass(frozen=True, slots=True)
class Advised:
    """The curves say something. `kind`: `overfitting`, `flat`, `spikes`, or what else is in `advice.py`."""

    step: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over. `reason`: `done`, `early_stopped`, or `stopped` (it can be resumed)."""

    step: int
    reason: str
    seconds: float
    loss: float
    trained_tokens: int


Event = Started | Progress | Evaluated | Saved | Advised | Finished
Report = Callable[[Event], None]
_KINDS: dict[str, type[Any]] = {
    "started": Started,
    "progress": Progress,
    "evaluated": Evaluated,
    "saved": Saved,
    "advised": Advised,
    "finished": Finished,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def event_to_json(event: Event) -> dict[str, Any]:
    """A JSON object; `event` says which kind it is."""
    return {"event": _NAMES[type(event)], **asdict(event)}


def event_from_json(found: Mapping[str, Any]) -> Event:
    """What `event_to_json` wrote.

    Raises:
        ValueError: it is none.
    """
    values = {name: value for name, value in found.items() if name != "event"}
    kind = _KINDS.get(str(found.get("event")))
    if kind is None:
        raise ValueError(f"there is no event {found.get('event')!r}")
    if kind is Evaluated:
        values["samples"] = tuple(Sample(**sample) for sample in values.get("samples", ()))
    try:
        event: Event = kind(**values)
    except TypeError as error:
        raise ValueError(f"{found.get('event')}: {error}") from None
    return event
