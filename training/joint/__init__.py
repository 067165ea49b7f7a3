"""Several runs on one base in shared forward passes: each as it would be alone, the base held once.

    together.py    the loop: passes, their losses, one step of each job whose batch is complete
    member.py      one job: its data, optimizer, schedule, events and checkpoints
    layers.py      its adapter, made by PEFT and taken out of the base
    passes.py      what goes into a forward pass, and the loss of each job in it
    chance.py      what the base itself drops, drawn for each job by itself

Importing this is cheap; torch comes with `train_together`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.events import Event
from training.joint.admission import can_join
from training.spec import TrainSpec

if TYPE_CHECKING:
    from training.run import RunResult, TrainingData

__all__ = ["MOST_TOKENS", "JointJob", "JointReport", "can_join", "train_together"]

MOST_TOKENS = 8192
"""Of one forward pass, padding included: as many as one run has at most with the batch size that is usual."""
JointReport = Callable[[str, Event], None]


@dataclass(frozen=True, slots=True)
class JointJob:
    """One of the runs. The fields are those of `training.run.train`; `id` names it among them."""

    id: str
    spec: TrainSpec
    data: TrainingData
    folder: Path
    resume: bool = False
    parent: Path | None = None


def ignore(job: str, event: Event) -> None:
    """For who does not listen."""


def nobody() -> Collection[str]:
    """For who stops none."""
    return ()


def train_together(
    base: str | Path,
    jobs: Sequence[JointJob],
    report: JointReport = ignore,
    stop: Callable[[], Collection[str]] = nobody,
    *,
    most_tokens: int = MOST_TOKENS,
) -> dict[str, RunResult | Exception]:
    """Train all jobs, each into its own folder, as `training.run.train` does for each alone.

    A job that can't go on ends alone, and its error is its result: a `ValueError` if what was asked for is
    wrong, a `TrainingError` if it diverged or memory ran out, anything else if it is our fault.

    Args:
        stop: the ids of jobs that are to save a checkpoint and end; asked after each round of passes.
        most_tokens: of one forward pass, with padding. More jobs than fit take turns within a step.

    Raises:
        ValueError: two jobs have the same id or folder.
    """
    from training.joint.together import run_together

    return run_together(base, jobs, report, stop, most_tokens)
