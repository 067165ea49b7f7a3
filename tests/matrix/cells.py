"""The cells of the matrix: adapters that PEFT made, served all in one batch, against PEFT alone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor

from adapters.errors import AdapterError
from adapters.registry.registry import Registry
from server.engine.loading import UnsupportedModel
from tests.adapters.records import trained, untrained
from tests.kit import LIMITS, prompts
from tests.matrix.bases import Base, Served
from tests.matrix.families import FAMILIES, Family
from tests.matrix.variants import CONVERTED, INVOCATION, VARIANTS

TOLERANCE = 1e-5
"""Largest `Cell.difference`."""
ROUNDING = 2.0
"""Largest `Cell.ours / Cell.theirs`: bfloat16 may cost us what it costs PEFT, and the factor is chance, since
the two round at different places."""
_LEAST_CHANGE = 1e-3
PROMPTS = tuple((*prompt[:4], *INVOCATION, *prompt[4:]) for prompt in prompts(11, 20, 7, 15, 26, 18, seed=4))
TOKENS = 5


@dataclass(frozen=True)
class Cell:
    """What was found of one variant on one family.

    Attributes:
        absent: why there is no such adapter, or what it is refused with; all else is None then.
        difference: the largest of our logits from PEFT's in float32, as a part of the largest (or of 1).
        same_tokens: whether PEFT's greedy answer is ours.
        change: how far the adapter moves the base's logits, in the same measure.
        ours, theirs: how far bfloat16 is from PEFT's float32, `||x - y|| / ||y||`: ours, and the larger of
            PEFT's own and transformers' on the base.
    """

    absent: str | None = None
    difference: float | None = None
    same_tokens: bool | None = None
    change: float | None = None
    ours: float | None = None
    theirs: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is within the tolerances, of an adapter that does something."""
        if self.difference is None or self.change is None:
            return self.absent is not None
        exact = self.difference <= TOLERANCE and bool(self.same_tokens) and self.change >= _LEAST_CHANGE
        return exact and (self.ours is None or self.theirs is None or self.ours <= ROUNDING * self.theirs)


@dataclass(frozen=True)
class _Made:
    """An adapter by PEFT, and the digest under which it was published."""

    oracle: Any
    digest: str


def measure(name: str, variants: Iterable[str], folder: Path) -> dict[str, Cell]:
    """One family's cells of these variants, all served in one mixed batch with the bare base."""
    family = FAMILIES[name]
    base = family.make(folder / "base")
    model = base.serve(torch.float32)
    cells: dict[str, Cell] = {}
    made: dict[str, _Made] = {}
    with Registry(folder / "data", model.spec, LIMITS, base_weights=base.weights(model)) as registry:
        for variant in variants:
            found = _make(variant, family, base, registry, folder)
            if isinstance(found, str):
                cells[variant] = Cell(absent=found)
            else:
                made[variant] = found
        owners: dict[str, str | None] = {variant: each.digest for variant, each in made.items()}
        if family.kind.task != "TOKEN_CLS":
            owners["the base"] = None
        full = _answers(base, model, registry, owners)
        half = _in_bfloat16(base, registry, owners)
    tokens = [served.tokens for served in full.get("the base", [])] or [[]] * base.prompts
    rounded = _error(_logits(base, base.in_bfloat16(base.stock), tokens), _logits(base, base.stock, tokens))
    for variant, each in made.items():
        cells[variant] = _compare(base, each, full[variant], half.get(variant), rounded)
    return {variant: cells[variant] for variant in variants}


def _answers(
    base: Base, model: Any, registry: Registry, owners: Mapping[str, str | None]
) -> dict[str, list[Served]]:
    """What each owner gets for each prompt, where all owners are in one batch."""
    runs = [base.run(model, registry.load, owners, prompt, TOKENS) for prompt in PROMPTS[: base.prompts]]
    return {owner: [run[owner] for run in runs] for owner in owners}


def _in_bfloat16(base: Base, registry: Registry, owners: Mapping[str, str | None]) -> dict[str, list[Served]]:
    """The same in bfloat16; empty if the base is refused in it."""
    try:
        model = base.serve(torch.bfloat16)
    except UnsupportedModel:
        return {}
    return _answers(base, model, registry, owners)


def _make(variant: str, family: Family, base: Base, registry: Registry, folder: Path) -> _Made | str:
    """The published adapter; or why there is none, or what it was refused with."""
    name = re.sub(r"\W+", "-", variant.lower())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a config is not recommended for is no matter here
            config = VARIANTS[variant](family)
            if isinstance(config, str):
                return config
            oracle = trained(base.stock, folder / name, config)
        if variant in CONVERTED:
            _convert(oracle, base, config, folder / name)
    except RuntimeError:
        return "PEFT: it can't load the factors that it began with"
    except (AttributeError, TypeError, ValueError) as error:
        return f"PEFT: {error}"
    try:
        version, _ = registry.publish_folder(name, folder / name)
    except AdapterError as error:
        return f"refused: {error}"
    if variant == "KaSA":
        _truncate(oracle, base)
    return _Made(oracle, version.digest)


def _convert(oracle: Any, base: Base, config: PeftConfig, folder: Path) -> None:
    """Save it once more, as a change of the base as it was."""
    initial = untrained(base.stock, config)
    initial.peft_config["default"].init_lora_weights = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what comes next
        initial.save_pretrained(folder / "initial")
        oracle.save_pretrained(folder, path_initial_model_for_weight_conversion=str(folder / "initial"))


def _truncate(oracle: Any, base: Base) -> None:
    """Round the base's weights once only: PEFT puts them together again from a float32 decomposition."""
    for name, module in oracle.get_base_model().named_modules():
        if hasattr(module, "lora_diag"):
            weight = base.stock.get_submodule(name).weight.double()
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            rank = len(s) - len(module.lora_diag["default"])
            module.base_layer.weight.data = (u[:, :rank] * s[:rank] @ vh[:rank]).float()


def _compare(base: Base, made: _Made, full: list[Served], half: list[Served] | None, rounded: float) -> Cell:
    tokens = [served.tokens for served in full]
    exact = _logits(base, made.oracle, tokens)
    cell = Cell(
        difference=_difference(torch.cat([served.logits for served in full]), exact),
        same_tokens=all(
            _logits(base, made.oracle, [own], [prompt]).argmax(-1)[-len(own) :].tolist() == own
            for own, prompt in zip(tokens, PROMPTS, strict=False)
        ),
        change=_difference(_logits(base, base.stock, tokens), exact),
    )
    if half is None:
        return cell
    tokens = [served.tokens for served in half]
    exact = _logits(base, made.oracle, tokens)
    theirs = _error(_logits(base, base.in_bfloat16(made.oracle), tokens), exact)
    ours = _error(torch.cat([served.logits for served in half]), exact)
    return replace(cell, ours=ours, theirs=max(theirs, rounded))


def _logits(
    base: Base, model: Any, tokens: list[list[int]], sources: Sequence[Sequence[int]] = PROMPTS
) -> Tensor:
    """By a stock forward, the rows of all prompts one after another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # aLoRA's, which is told of its invocation by its input alone
        rows = [base.logits(model, *pair) for pair in zip(sources, tokens, strict=False)]
    return torch.cat(rows).float()


def _difference(got: Tensor, expected: Tensor) -> float:
    """The largest, as a part of the largest value, or of 1 if that is less."""
    return float((got - expected).abs().max() / max(1.0, float(expected.abs().max())))


def _error(got: Tensor, expected: Tensor) -> float:
    """Of the row in the middle: near a tie the last bit of bfloat16 sends a token to another expert."""
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).median())
