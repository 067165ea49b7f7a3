"""Adapters with every mix of terms on a few layers, and what each row's result must be, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.base import LinearSpec
from adapters.delta import AdapterWeights, ModuleDelta

GROUPS = [("q", "k"), ("down",), ("head",)]
SIZES = {"q": (40, 50), "k": (40, 24), "down": (56, 40), "head": (40, 70)}
SPECS = {name: LinearSpec(name, inputs, outputs) for name, (inputs, outputs) in SIZES.items()}
Runs = Sequence[tuple[str | None, int]]
"""Whose the rows are, segment by segment; None is the base."""
DECODE: Runs = [(name, 1) for name in ("plain", None, "dora", "bias", "ia3", "all", None, "dora", "ia3")]
LONG: Runs = [("dora", 70), (None, 3), ("ia3", 61), ("all", 20), ("plain", 2), ("bias", 9), (None, 5)]
MIXED: Runs = [("ia3", 1), (None, 1), ("dora", 1), ("plain", 1), ("bias", 64), (None, 4), ("all", 130)]


def random(*sizes: int, seed: int) -> Tensor:
    """Numbers that bfloat16 holds, so that casts change nothing."""
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


WEIGHTS = {name: random(o, i, seed=i + o) / 8 for name, (i, o) in SIZES.items()}
BIASES = {name: random(SIZES[name][1], seed=3) if name in ("q", "head") else None for name in SIZES}


def delta(name: str, rank: int, terms: str = "", seed: int = 0) -> ModuleDelta:
    """Random; `terms` has `m`, `s` and `i` for a magnitude, a shift and an input scale."""
    inputs, outputs = SIZES[name]
    seed += 10 * sum(name.encode())
    return ModuleDelta(
        random(rank, inputs, seed=seed) / 8,
        random(outputs, rank, seed=seed + 1),
        0.5,
        1 + random(outputs, seed=seed + 2) / 4 if "m" in terms else None,
        random(outputs, seed=seed + 3) if "s" in terms else None,
        1 + random(inputs, seed=seed + 4) / 4 if "i" in terms else None,
    )


ADAPTERS = {
    "plain": {"q": delta("q", 4), "k": delta("k", 8), "down": delta("down", 2), "head": delta("head", 3)},
    "dora": {
        "q": delta("q", 4, "ms", 1),
        "k": delta("k", 3, "m", 1),
        "down": delta("down", 17, "m", 1),
        "head": delta("head", 2, "m", 1),
    },
    "bias": {"q": delta("q", 0, "s", 2), "down": delta("down", 0, "s", 2), "head": delta("head", 0, "s", 2)},
    "ia3": {"k": delta("k", 0, "m", 3), "down": delta("down", 0, "i", 3)},
    "all": {"q": delta("q", 5, "msi", 4), "k": delta("k", 2, "", 4), "head": delta("head", 1, "msi", 4)},
}


def weights(name: str) -> AdapterWeights:
    return AdapterWeights(name, ADAPTERS[name])


def inputs(module: str, runs: Runs, seed: int = 5) -> Tensor:
    return random(sum(count for _, count in runs), SIZES[module][0], seed=seed)


def expected(module: str, x: Tensor, owner: str | None) -> Tensor:
    """`magnitude * (W (input_scale * x) + b) + scale * B A x + shift` of one row, in float64."""
    row, bias = x.double().cpu(), BIASES[module]
    own = ADAPTERS[owner].get(module) if owner else None
    scaled = row if own is None or own.input_scale is None else row * own.input_scale.double()
    y = WEIGHTS[module].double() @ scaled
    y = y if bias is None else y + bias.double()
    if own is None:
        return y
    y = y if own.magnitude is None else y * own.magnitude.double()
    y = y + own.scale * (own.b.double() @ (own.a.double() @ row))
    return y if own.shift is None else y + own.shift.double()


def owners(runs: Runs) -> list[str | None]:
    """Of each row."""
    return [owner for owner, count in runs for _ in range(count)]
