"""The learning rate and the precision that suit a base, where nobody says them."""

from __future__ import annotations

from server.jobs.settle import facts_of
from server.settings import Settings
from training.base import MODEL_DIR
from training.plan.facts import sees_gpu
from training.plan.presets import modern_rate
from training.spec import Precision, TaskName, TrainSpec


def usual_rate(settings: Settings, task: TaskName) -> float:
    """What `learning_rate_multiplier` multiplies: a tiny base wants far more than a large one.

    `multilora train plan` says the same, and why.
    """
    facts = facts_of(settings.model or str(MODEL_DIR), task)
    return TrainSpec.learning_rate if facts is None else float(modern_rate(facts).value)


def usual_precision(settings: Settings) -> Precision:
    """Half precision where a job trains on a GPU: that has no room for a second base in float32."""
    return "bfloat16" if settings.training_device != "cpu" and sees_gpu() else "float32"
