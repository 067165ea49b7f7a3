"""The whole plan: every preset side by side, as values, as JSON, and as specs that can be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.plan.auto import Chosen, choose
from training.plan.duration import Duration, duration, measure
from training.plan.facts import BaseFacts, RowFacts
from training.plan.memory import USABLE
from training.plan.presets import PRESETS, PresetName
from training.plan.trainable import Trainable, count, rank_for_share
from training.spec import LoraSpec, TrainSpec, spec_to_json

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
"""GiB of usual cards, to name the smallest that would do."""
_GIB = 1024**3
_FREEING = ("method", "batch_size", "accumulation", "gradient_checkpointing", "precision")


@dataclass(frozen=True, slots=True)
class Option:
    """What one preset comes to.

    Attributes:
        steps: optimizer steps.
        remedy: what would fit, where this does not.
    """

    chosen: Chosen
    trainable: Trainable
    steps: int
    duration: Duration
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All presets for one base and one file. `five_percent`: ranks by the texts' rule, by layers."""

    base: BaseFacts
    rows: RowFacts
    gpu_bytes: int | None
    options: Mapping[PresetName, Option]
    five_percent: Mapping[str, int]

    def spec(self, preset: PresetName = "modern") -> TrainSpec:
        """What to run."""
        return self.options[preset].chosen.spec

    def to_json(self) -> dict[str, Any]:
        return {
            "base": {
                "name": self.base.name,
                "model_type": self.base.model_type,
                "parameters": self.base.parameters,
                "hidden": self.base.hidden,
                "layers": self.base.layers,
            },
            "data": asdict(self.rows),
            "gpu_bytes": self.gpu_bytes,
            "rank_for_five_percent": dict(self.five_percent),
            "presets": {name: _as_json(option) for name, option in self.options.items()},
        }


def make_plan(
    base: BaseFacts,
    rows: RowFacts,
    *,
    cuda: bool = False,
    gpu_bytes: int | None = None,
    given: Mapping[str, Any] | None = None,
    rate: float | None = None,
    measured_on: str | Path | None = None,
) -> Plan:
    """Every preset's choices with what they cost.

    Args:
        cuda, gpu_bytes, given: as of `choose`.
        rate: tokens a second, from an earlier run.
        measured_on: the base whose steps are timed on this machine instead.

    Raises:
        ValueError: as `choose`.
    """
    asked = dict(given or {})
    options = {}
    for preset in PRESETS:
        chosen = choose(base, rows, preset, cuda=cuda, gpu_bytes=gpu_bytes, given=asked)
        found = measure(measured_on, chosen.spec, chosen.tokens) if measured_on is not None else rate
        options[preset] = Option(
            chosen,
            count(base, chosen.spec.lora, chosen.spec.task),
            steps_of(chosen, rows),
            duration(
                base,
                chosen.spec,
                _tokens_seen(chosen, rows),
                rows.mean,
                cuda=cuda,
                gpu_bytes=gpu_bytes,
                devices=chosen.batch.devices,
                rate=found,
                measured=measured_on is not None,
            ),
            remedy(base, rows, chosen, gpu_bytes, asked) if chosen.fits is False and gpu_bytes else None,
        )
    return Plan(base, rows, gpu_bytes, options, _five_percent(base))


def steps_of(chosen: Chosen, rows: RowFacts) -> int:
    """Optimizer steps on all devices together."""
    spec = chosen.spec
    return spec.steps or spec.epochs * -(-rows.rows // chosen.batch.effective)


def _tokens_seen(chosen: Chosen, rows: RowFacts) -> float:
    if chosen.spec.steps:
        return chosen.spec.steps * chosen.batch.effective * rows.mean
    return float(chosen.spec.epochs * rows.tokens)


def remedy(base: BaseFacts, rows: RowFacts, chosen: Chosen, gpu_bytes: int, asked: Mapping[str, Any]) -> str:
    """What would fit instead: without what was asked, on which card, or with which base."""
    said = []
    freed = {name: value for name, value in asked.items() if name not in _FREEING}
    other = choose(base, rows, chosen.preset, cuda=True, gpu_bytes=gpu_bytes, given=freed)
    if other.fits:
        spec = other.spec
        saving = " with gradient checkpointing" if spec.gradient_checkpointing else ""
        said.append(
            f"{spec.lora.method}{saving} in batches of {spec.batch_size} ({other.memory.full / _GIB:.1f} GiB)"
        )
    card = next((size for size in CARDS if chosen.memory.full <= USABLE * size * _GIB), None)
    said.append(f"a card of {card} GB" if card else "several cards, which one run does not use")
    if not other.fits:
        rest = other.memory.full - other.memory.parts[0].size
        room = max(0, USABLE * gpu_bytes - rest) / (other.memory.parts[0].size / base.parameters)
        said.append(f"a base of at most {room / 1e9:.1f}B parameters")
    return ", or ".join(said)


def _five_percent(base: BaseFacts) -> dict[str, int]:
    found = {"all-linear": rank_for_share(base, LoraSpec(), 0.05)}
    if base.usual:
        found["default"] = rank_for_share(base, LoraSpec(target_modules="default"), 0.05)
    return found


def _as_json(option: Option) -> dict[str, Any]:
    chosen, memory = option.chosen, option.chosen.memory
    return {
        "spec": spec_to_json(chosen.spec),
        "reasons": dict(chosen.reasons),
        "batch": {**asdict(chosen.batch), "effective": chosen.batch.effective},
        "steps": option.steps,
        "trainable": {
            **asdict(option.trainable),
            "trainable": option.trainable.trainable,
            "share": option.trainable.share,
        },
        "memory": {
            "rule": memory.rule,
            "full_training": memory.full_training,
            "full": memory.full,
            "parts": [asdict(part) for part in memory.parts],
        },
        "duration": asdict(option.duration),
        "fits": chosen.fits,
        "remedy": option.remedy,
    }
