"""What a finished adapter comes from: what its model card and its lineage tell beside its curves."""

from __future__ import annotations

from dataclasses import dataclass

from training.events import Evaluated
from training.report.curves import Curves
from training.spec import TrainSpec


@dataclass(frozen=True, slots=True)
class Origin:
    """Of one result.

    Attributes:
        base: name of the base, as in the adapter's config.
        files: names and SHA-256 (64 hex digits) of the data.
        step: whose weights these are; None: the last.
        parent: what the training went on from: an adapter's reference, or a folder's name.
        parent_digest: of its content, 64 hex digits.
        job: the training job that made it.
    """

    spec: TrainSpec
    base: str
    files: tuple[tuple[str, str], ...] = ()
    step: int | None = None
    parent: str | None = None
    parent_digest: str | None = None
    job: str | None = None


def evaluation(origin: Origin, curves: Curves) -> Evaluated | None:
    """The last look at the validation rows with the weights of the result, or before them."""
    found = [each for each in curves.evaluated if origin.step is None or each.step <= origin.step]
    return found[-1] if found else None


def figures(evaluated: Evaluated) -> dict[str, float]:
    """All numbers of an evaluation, by name."""
    found = {"validation_loss": evaluated.loss, evaluated.metric: evaluated.score}
    found |= {"token_accuracy": evaluated.token_accuracy, **evaluated.scores}
    return {name: value for name, value in found.items() if value is not None}
