"""The learning rate and the precision that suit a base, where nobody says them."""

from __future__ import annotations

import logging
from functools import lru_cache

from server.settings import Settings
from training.base import MODEL_DIR
from training.plan.facts import read_base, sees_gpu
from training.plan.presets import modern_rate
from training.spec import Precision, TaskName, TrainSpec

log = logging.getLogger(__name__)


def usual_rate(settings: Settings, task: TaskName) -> float:
    """What `learning_rate_multiplier` multiplies: a tiny base wants far more than a large one.

    `multilora train plan` says the same, and why.
    """
    return _rate(settings.model or str(MODEL_DIR), task)


def usual_precision(settings: Settings) -> Precision:
    """Half precision where a job trains on a GPU: that has no room for a second base in float32."""
    return "bfloat16" if settings.training_device != "cpu" and sees_gpu() else "float32"


@lru_cache(maxsize=16)
def _rate(base: str, task: TaskName) -> float:
    try:
        return float(modern_rate(read_base(base, task)).value)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        log.warning("the learning rate that suits %s is not known: %s", base, error)
        return TrainSpec.learning_rate
