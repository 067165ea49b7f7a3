"""The gate before a result is published: the base, the result and the version that it would replace.

All are asked the same validation rows in this process, on one base that the adapters take turns on;
`training/report/verdict.py` compares what they say.

A classifier's base has no head of its own: it counts as one that knows how often each label is, and always
says the most frequent. DPO's base prefers neither answer.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel

from training.data import IGNORE, Example, Tokens, encode, encode_pairs
from training.events import Evaluated
from training.methods import load_base
from training.methods.patterns import slow_pattern
from training.report.evaluation import entities, evaluate
from training.report.origin import figures
from training.report.questions import evenly
from training.report.scores import accuracy, constant, macro_f1, micro_f1
from training.report.verdict import verdict
from training.run.exact import precision_of
from training.spec import TrainSpec, require

LOOKED_AT, ASKED = 1000, 200
"""Rows whose loss is measured, and rows that each of them answers, at most; evenly out of all."""
_LABELLED = ("SEQ_CLS", "TOKEN_CLS")


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate says.

    Attributes:
        scores: `base`, `adapter` and, where there is one to compare with, `current`, each with its
            `validation_loss`, the task's metric, and further figures.
    """

    passed: bool
    reason: str
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def gate(
    base: str | Path,
    adapter: Path,
    current: Path | None,
    examples: Sequence[Example],
    spec: TrainSpec,
    minimum: float | None = None,
) -> GateReport:
    """Compare a result with the base and with the version that it would replace.

    Args:
        adapter, current: PEFT folders.
        examples: to ask; rows that nothing was trained on are best.
        minimum: the score that the result must reach at least, besides.

    Raises:
        ValueError: there is no row to ask, or an adapter does not fit the base.
    """
    labels = _labels(adapter)
    model, tokenizer = load_base(base, spec, labels)
    looks = _Looks(model, tokenizer, examples, spec, labels)
    found = {"base": looks.at_base(), "adapter": looks.at(adapter)}
    other = "" if current is None else _other(current, spec, labels)
    if current is not None and not other:
        found["current"] = looks.at(current)
    passed, reason = verdict(found, looks.count, minimum)
    return GateReport(passed, reason + other, {who: figures(each) for who, each in found.items()})


class _Looks:
    """One base, looked at bare and with adapters on it, one after the other."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        examples: Sequence[Example],
        spec: TrainSpec,
        labels: Sequence[str],
    ) -> None:
        self._model, self._tokenizer, self._spec = model, tokenizer, spec
        self._rows: list[Any]
        if spec.objective == "dpo":
            self._rows = encode_pairs(examples, tokenizer, spec.max_length).rows
        else:
            self._rows = encode(examples, tokenizer, spec.task, spec.max_length, labels).rows
        require(bool(self._rows), "the gate has no row to ask: none has anything to answer")
        self._rows = evenly(self._rows, LOOKED_AT)
        self.count = min(len(self._rows), ASKED)

    def at_base(self) -> Evaluated:
        if self._spec.objective == "dpo":
            return Evaluated(0, math.log(2), None, "reward_accuracy", 0.5)
        if self._spec.task in _LABELLED:
            return guess(self._rows, self._spec, entities(self._model))
        return self._look(self._model)

    def at(self, folder: Path) -> Evaluated:
        with _adapted(self._model, folder) as model:
            return self._look(model)

    def _look(self, model: Any) -> Evaluated:
        measure = None
        if self._spec.objective == "dpo":
            from training.preferences import measure_pairs  # with TRL, which nobody else here needs

            measure = partial(measure_pairs, rows=self._rows, spec=self._spec, tokenizer=self._tokenizer)
        with precision_of(self._spec, next(model.parameters()).device):
            return evaluate(
                model, self._tokenizer, self._rows, self._spec, 0, 0, asked=ASKED, measure=measure
            )


def guess(rows: Sequence[Tokens], spec: TrainSpec, names: set[int]) -> Evaluated:
    """Of a classifier that knows how often each label is, and nothing else. `names`: all classes but `O`."""
    wanted = [label for row in rows for label in row.labels if label != IGNORE]
    counts = Counter(wanted)
    loss = -sum(count * math.log(count / len(wanted)) for count in counts.values()) / len(wanted)
    said = constant({(label, label): count for label, count in counts.items()})
    if spec.task == "SEQ_CLS":
        return Evaluated(0, loss, None, "accuracy", accuracy(said), (), {"macro_f1": macro_f1(said)})
    return Evaluated(0, loss, accuracy(said), "f1", micro_f1(said, names), (), {"accuracy": accuracy(said)})


@contextmanager
def _adapted(base: Any, folder: Path) -> Iterator[Any]:
    """The base with an adapter, and after it as it was: PEFT leaves trained biases in it.

    Raises:
        ValueError: the adapter lacks weights for this base. What else PEFT says in loading is of no effect.
    """
    biases = {name: each.detach().clone() for name, each in base.named_parameters() if name.endswith("bias")}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, str(folder))
    missing = [text for text in (str(each.message) for each in told) if "missing adapter keys" in text]
    try:
        require(not missing, f"the adapter {folder.name} does not fit this base: {' '.join(missing)[:500]}")
        yield model
    finally:
        model.unload()
        named = dict(base.named_parameters())
        for name, value in biases.items():
            named[name].data.copy_(value)


def _labels(folder: Path) -> tuple[str, ...]:
    path = folder / "labels.json"
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ()


def _other(current: Path, spec: TrainSpec, labels: Sequence[str]) -> str:
    """Why the current version can't be asked the same; empty: it can."""
    config = PeftConfig.from_pretrained(str(current))
    slow = slow_pattern(config)
    if slow is not None:
        return f"; the current version was not compared: {slow}"
    task = getattr(config.task_type, "value", config.task_type)
    if task not in (None, spec.task):
        return f"; the current version is for {task} and was not compared"
    if spec.task in _LABELLED and _labels(current) != tuple(labels):
        return "; the current version has other labels and was not compared"
    return ""
