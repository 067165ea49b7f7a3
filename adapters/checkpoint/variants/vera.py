"""VeRA: all modules share two frozen random matrices, and train two vectors each.

    y += lambda_b * (B[:out] (lambda_d * (A[:, :in] x)))

Kopiczko et al. 2023 (arXiv 2310.11454). Exact at rank `r`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import BaseWeights, boolean, by_module, check_shape, fault
from adapters.checkpoint.variants.factors import MAX_RANK, one_rank, part, record, shared
from adapters.delta import ModuleDelta
from adapters.errors import InvalidAdapter

APPLIED = frozenset({"r", "projection_prng_key", "save_projection"})
NO_EFFECT = {
    "vera_dropout": "off outside training",
    "d_initial": "used to initialise lambda_d only",
    "init_weights": "used to initialise only",
    "fan_in_fan_out": "how the base stores its weight",
}
REFUSED: dict[str, str] = {}


def records(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    base: BaseSpec,
    weights: BaseWeights,
    *,
    max_rank: int = MAX_RANK,
) -> dict[str, ModuleDelta]:
    """Each wrapped module's record.

    Raises:
        InvalidAdapter: the files are not a VeRA adapter for this base.
        AdapterTooLarge: `r` is over `max_rank`.
    """
    r = one_rank(raw, 256, max_rank)
    own = {name: tensor for name, tensor in tensors.items() if name not in ("vera_A", "vera_B")}
    found = by_module(own, ("vera_lambda_b", "vera_lambda_d"), raw, base)
    inner = {module: part(parts, module, "vera_lambda_d", (r,)) for module, parts in found.items()}
    a, b = projections(raw, tensors, "vera", (r, r), found, base)
    deltas = {}
    for module, parts in found.items():
        linear = base.linears[module]
        outer = part(parts, module, "vera_lambda_b", (linear.out_features,))
        down = inner[module][:, None] * a[:, : linear.in_features]
        deltas[module] = record(module, linear, (down, outer[:, None] * b[: linear.out_features]))
    return deltas


def projections(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    tuner: str,
    ranks: tuple[int, int],
    modules: Iterable[str],
    base: BaseSpec,
) -> tuple[Tensor, Tensor]:
    """The shared matrices, `(ranks[0], widest input)` and `(widest output, ranks[1])` of the wrapped modules.

    Where `save_projection` is off they are made from `projection_prng_key` as PEFT makes them: Kaiming
    uniform, A before B, from one CPU generator.

    Raises:
        InvalidAdapter: the config promises them and they are missing, or the other way round.
    """
    linears = [base.linears[module] for module in modules]
    if not linears:
        raise fault(f"target_modules matches no linear layer of {base.name}")
    shapes = (
        (ranks[0], max(linear.in_features for linear in linears)),
        (max(linear.out_features for linear in linears), ranks[1]),
    )
    names = (f"{tuner}_A", f"{tuner}_B")
    if boolean(raw, "save_projection", True):
        a, b = (check_shape(n, shared(tensors, n), s).float() for n, s in zip(names, shapes, strict=True))
        return a, b
    for name in names:
        if name in tensors:
            raise InvalidAdapter(f"tensor {name!r} is not used with save_projection=false; set it to true")
    generator = torch.Generator("cpu").manual_seed(seed(raw, "projection_prng_key", 0))
    a, b = (_kaiming_uniform(shape, generator) for shape in shapes)
    return a, b


def seed(raw: Mapping[str, Any], field: str, default: int) -> int:
    """What a generator is seeded with.

    Raises:
        InvalidAdapter: not an integer of 64 bits.
    """
    value = raw.get(field, default)
    if type(value) is not int or not 0 <= value < 2**63:
        raise fault(f"{field} must be an integer from 0 to 2**63 - 1, not {value!r:.60}")
    return value


def _kaiming_uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """He et al. 2015 (arXiv 1502.01852) for ReLU, by the number of columns."""
    bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))
    return torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
