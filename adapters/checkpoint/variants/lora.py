"""LoRA on linear maps and its variants: each is `scale * B A` on the pristine base, maybe with a magnitude.

Functions from factors to factors. `a` is `(rank, in_features)`, `b` `(out_features, rank)`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from adapters.delta import ModuleDelta
from adapters.errors import InvalidAdapter


def from_blocks(compact: Tensor, full: tuple[int, int], blocks: int, name: str) -> Tensor:
    """BD-LoRA: the block-diagonal matrix of a factor that is stored without its zeros.

    PEFT stores one of the two so: `(rows, columns / blocks)`, whose `blocks` chunks of rows are the blocks.

    Raises:
        InvalidAdapter: it can't be cut into so many blocks.
    """
    rows, columns = full
    if tuple(compact.shape) == full:
        return compact
    if rows % blocks or columns % blocks or tuple(compact.shape) != (rows, columns // blocks):
        raise InvalidAdapter(
            f"tensor {name!r} has shape {tuple(compact.shape)}; {blocks} blocks (use_bdlora.nblocks) of "
            f"{full} can't be of this"
        )
    whole = compact.new_zeros(full)
    for row, column, block in zip(
        whole.chunk(blocks), range(0, columns, columns // blocks), compact.chunk(blocks), strict=True
    ):
        row[:, column : column + columns // blocks] = block
    return whole


def initial_factors(init: str, weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """What PiSSA (arXiv 2404.02948) or OLoRA (arXiv 2406.01775) took from the base when training began.

    PEFT subtracts `scale * b a` of these from the base's weight; their product does not depend on the signs
    that a decomposition chooses. `weight`: `(out_features, in_features)`.
    """
    if init == "pissa":
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        root = (s[:rank] / scale).sqrt()
        return root[:, None] * vh[:rank], u[:, :rank] * root
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


def dropped_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` smallest singular components of the base's weight, which KaSA (arXiv 2412.06071) drops."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return vh[-rank:], u[:, -rank:] * s[-rank:]


def without(delta: ModuleDelta, a: Tensor, b: Tensor, scale: float) -> ModuleDelta:
    """`delta` on a base from which `scale * b a` was taken: of rank `2r` on the pristine base."""
    b = b * (scale / delta.scale) if scale != delta.scale else b
    return replace(delta, a=torch.cat([delta.a, a]), b=torch.cat([delta.b, -b], dim=1))


def magnitude(delta: ModuleDelta, stored: Tensor, weight: Tensor) -> Tensor:
    """DoRA's factor of each output (arXiv 2402.09353, eq. 5): `stored / ||W + scale * B A||`, by row."""
    whole = torch.addmm(weight, delta.b, delta.a, alpha=delta.scale)
    norms: Tensor = torch.linalg.norm(whole, dim=1)
    return stored / norms


def magnified(delta: ModuleDelta, factor: Tensor, bias: Tensor | None) -> ModuleDelta:
    """`y = m (W x + scale * B A x) + bias` as a record, whose magnitude also meets the base's bias."""
    shift = None if bias is None else bias - factor * bias
    return replace(delta, b=factor[:, None] * delta.b, magnitude=factor, shift=shift)
