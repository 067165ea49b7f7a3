"""What of an adapter is compared: by its task and its base, which numbers both sides compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters.base import BaseKind, BaseSpec
from adapters.delta import AdapterWeights

HEADS = ("SEQ_CLS", "TOKEN_CLS")
EMBEDS = "FEATURE_EXTRACTION"


@dataclass(frozen=True, slots=True)
class Subject:
    """One adapter's comparison.

    Attributes:
        kind: of the base.
        task: `SEQ_CLS` or `TOKEN_CLS`: the head's logits. `FEATURE_EXTRACTION`: last hidden states. Else, of
            what generates, the next tokens' logits.
        labels: of the head; 0 without one.
        head: names of the modules that are the head.
    """

    kind: BaseKind
    task: str
    labels: int = 0
    head: tuple[str, ...] = ()

    @property
    def distributes(self) -> bool:
        """Whether the numbers are logits of a distribution."""
        return self.task != EMBEDS

    def to_json(self) -> dict[str, Any]:
        """For the process that runs PEFT."""
        return {"kind": self.kind, "task": self.task, "labels": self.labels, "head": [*self.head]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Subject:
        """The counterpart of `to_json`."""
        return cls(value["kind"], value["task"], int(value["labels"]), tuple(value["head"]))


def subject_of(spec: BaseSpec, adapter: AdapterWeights) -> Subject:
    """What to compare of `adapter` on the base that `spec` describes."""
    task = adapter.task
    if task in HEADS:
        known = spec.heads.get(task)
        first = {name.partition(".")[0] for name in adapter.head}
        head = known.modules if known is not None else tuple(sorted(first))
        return Subject(spec.kind, task, _labels(spec, task, adapter), head)
    generates = spec.kind != "encoder" and task != EMBEDS
    return Subject(spec.kind, "CAUSAL_LM" if generates else EMBEDS)


def _labels(spec: BaseSpec, task: str, adapter: AdapterWeights) -> int:
    """How many outputs the head has: the adapter's, or where it brings none, the base's."""
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.head.items()}
    known = spec.heads.get(task)
    if known is None:  # a decoder's is one linear layer
        return next((shape[0] for name, shape in shapes.items() if name.endswith(".weight")), 0)
    name = min(known.by_label)
    return (shapes.get(name) or known.given[name])[0]
