"""What to train and how: plain values, checked when made, without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from training.combinations import problem

Method = Literal["lora", "rslora", "dora", "qlora", "adalora", "lora-ga", "pissa", "olora", "eva"]
"""`qlora` is LoRA on a base whose linear layers are kept in NF4."""
TaskName = Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS"]
Objective = Literal["supervised", "dpo"]
Bias = Literal["none", "all", "lora_only"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "bfloat16"]
DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class LoraSpec:
    """The adapter's shape. All linear layers by default: that learns far more than `q_proj` and `v_proj`.

    `target_modules` is what `training/targets.py` takes: names, a regular expression, `all-linear`, or
    `default` for those that are usual for the base's family.

    Attributes:
        modules_to_save: modules that are trained whole, such as `embed_tokens` and `lm_head`.
        layers: numbers of the layers that get an adapter; empty: all.
        rank_pattern, alpha_pattern: of modules that differ from `rank` and `alpha`, by PEFT's patterns.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    method: Method = "lora"
    rank: int = 8
    alpha: float = 16.0
    target_modules: str | tuple[str, ...] = "all-linear"
    dropout: float = 0.0
    bias: Bias = "none"
    modules_to_save: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("method", self.method, Method)
        _one_of("bias", self.bias, Bias)
        require(self.rank >= 1, f"rank must be at least 1, not {self.rank}")
        require(0 < self.alpha < math.inf, f"alpha must be above 0, not {self.alpha}")
        require(0 <= self.dropout < 1, f"dropout must be from 0 to below 1, not {self.dropout}")
        require(bool(self.target_modules), "target_modules is empty: name the modules, or 'all-linear'")
        require(all(layer >= 0 for layer in self.layers), f"layers must be numbers from 0, not {self.layers}")
        for name, rank in self.rank_pattern.items():
            require(rank >= 1, f"rank_pattern: the rank of {name} must be at least 1, not {rank}")
        for name, alpha in self.alpha_pattern.items():
            require(0 < alpha < math.inf, f"alpha_pattern: the alpha of {name} must be above 0, not {alpha}")


@dataclass(frozen=True)
class TrainSpec:
    """One run. `steps`, where given, decides the length instead of `epochs`.

    The learning rate suits models of real size; the shipped base, which is tiny, wants about `1e-2`.

    Attributes:
        batch_size: rows of one forward pass on one device.
        accumulation: forward passes of one optimizer step.
        warmup: share of the steps.
        beta: of DPO: how much moving away from the base costs.
        evaluate_every, save_every: steps between two; None: ten times a run, and together with evaluations.
        patience: evaluations without a better validation loss after which the run ends; None: it never does.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    lora: LoraSpec = field(default_factory=LoraSpec)
    task: TaskName = "CAUSAL_LM"
    objective: Objective = "supervised"
    beta: float = 0.1
    epochs: int = 3
    steps: int | None = None
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 2e-4
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 512
    evaluate_every: int | None = None
    save_every: int | None = None
    patience: int | None = None
    precision: Precision = "float32"
    device: DeviceName = "auto"
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in _CHOICES.items():
            _one_of(name, getattr(self, name), values)
        for name in ("epochs", "batch_size", "accumulation"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("steps", "evaluate_every", "save_every", "patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        for name in ("learning_rate", "max_grad_norm", "beta"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be above 0, not {value}")
        require(0 <= self.warmup < 1, f"warmup must be from 0 to below 1, not {self.warmup}")
        require(
            0 <= self.weight_decay < math.inf, f"weight_decay must be at least 0, not {self.weight_decay}"
        )
        require(self.max_length >= 2, f"max_length must be at least 2, not {self.max_length}")
        require(
            self.objective == "supervised" or self.task == "CAUSAL_LM",
            f"objective {self.objective} is for CAUSAL_LM, not for {self.task}",
        )
        reason = problem(self)
        require(reason is None, str(reason))

    @property
    def effective_batch(self) -> int:
        """Rows of one optimizer step on one device."""
        return self.batch_size * self.accumulation

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the run for so many examples."""
        return self.steps or self.epochs * math.ceil(examples / self.effective_batch)


_CHOICES: dict[str, Any] = {
    "task": TaskName,
    "objective": Objective,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "precision": Precision,
    "device": DeviceName,
}


def spec_to_json(spec: TrainSpec) -> dict[str, Any]:
    """A JSON object with every field; `spec_from_json` reads it."""
    return asdict(spec)


def spec_from_json(found: Mapping[str, Any]) -> TrainSpec:
    """A spec; fields that are not given have their defaults.

    Raises:
        ValueError: an unknown field, or a value of the wrong type or size; the message names it.
    """
    try:
        return _ADAPTER.validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        # What the specs themselves refuse names its field already.
        raise ValueError(reason if first["type"] == "value_error" else f"{where}: {reason}") from None


_ADAPTER = TypeAdapter(TrainSpec)


def _one_of(name: str, value: object, choices: Any) -> None:
    allowed = get_args(choices)
    require(value in allowed, f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)
