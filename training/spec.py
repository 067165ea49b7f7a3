"""What to train and how: plain values, checked when made, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoraSpec:
    """The adapter's shape. All linear layers by default: that learns far more than `q_proj` and `v_proj`.

    `target_modules` is what `training/targets.py` takes: names, a regular expression, `all-linear`, or
    `default` for those that are usual for the base's family.
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: str | tuple[str, ...] = "all-linear"
    rslora: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"rank must be at least 1, not {self.rank}")
        require(self.alpha > 0, f"alpha must be above 0, not {self.alpha}")
        require(0 <= self.dropout < 1, f"dropout must be from 0 to below 1, not {self.dropout}")
        require(bool(self.target_modules), "target_modules is empty: name the modules, or 'all-linear'")


@dataclass(frozen=True)
class TrainSpec:
    """One run. `steps`, where given, decides the length instead of `epochs`.

    The learning rate suits models of real size; the shipped base, which is tiny, wants about `1e-2`.
    """

    lora: LoraSpec = field(default_factory=LoraSpec)
    epochs: int = 3
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float = 2e-4
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}")
        require(self.steps is None or self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        require(self.batch_size >= 1, f"batch_size must be at least 1, not {self.batch_size}")
        require(self.learning_rate > 0, f"learning_rate must be above 0, not {self.learning_rate}")
        require(0 <= self.warmup < 1, f"warmup must be from 0 to below 1, not {self.warmup}")
        require(self.weight_decay >= 0, f"weight_decay must be at least 0, not {self.weight_decay}")
        require(self.max_length >= 2, f"max_length must be at least 2, not {self.max_length}")

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the run for so many examples."""
        return self.steps or self.epochs * math.ceil(examples / self.batch_size)


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)
