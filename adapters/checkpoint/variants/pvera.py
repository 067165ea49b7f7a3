"""PVeRA: VeRA whose inner vector is a distribution; served with its mean, as PEFT does unless told to sample.

The first half of `lambda_d` and of A's rows gives the mean, the second half the variance, which only training
and sampling use (arXiv 2512.07703). Exact at rank `r`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters.base import BaseSpec
from adapters.checkpoint.variants.common import BaseWeights, by_module
from adapters.checkpoint.variants.factors import MAX_RANK, one_rank, part, record
from adapters.checkpoint.variants.vera import projections
from adapters.delta import ModuleDelta

APPLIED = frozenset({"r", "projection_prng_key", "save_projection"})
NO_EFFECT = {
    "pvera_dropout": "off outside training",
    "d_initial": "used to initialise lambda_d only",
    "init_weights": "used to initialise only",
    "fan_in_fan_out": "how the base stores its weight",
    "generator_seed": "of the samples, which are not drawn here",
}
REFUSED = {
    "sample_at_inference": "an answer must not depend on chance beyond its own seed; set it to false, which "
    "serves the mean"
}


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
        InvalidAdapter: the files are not a PVeRA adapter for this base.
        AdapterTooLarge: `r` is over `max_rank`.
    """
    r = one_rank(raw, 256, max_rank)
    own = {name: tensor for name, tensor in tensors.items() if name not in ("pvera_A", "pvera_B")}
    found = by_module(own, ("pvera_lambda_b", "pvera_lambda_d"), raw, base)
    inner = {module: part(parts, module, "pvera_lambda_d", (2 * r,)) for module, parts in found.items()}
    a, b = projections(raw, tensors, "pvera", (2 * r, r), found, base)
    deltas = {}
    for module, parts in found.items():
        linear = base.linears[module]
        outer = part(parts, module, "pvera_lambda_b", (linear.out_features,))
        down = inner[module][:r, None] * a[:r, : linear.in_features]
        deltas[module] = record(module, linear, (down, outer[:, None] * b[: linear.out_features]))
    return deltas
