"""Searches over rows as wide as a vocabulary, on the CPU.

`torch.argmax`, `topk`, `sort` and `cumsum` take longer for a batch of such rows than some models take for
their whole step. Here a row is cut into blocks: a cheap pass finds what each block holds, and the search goes
on in the few blocks that matter. What is found is the same.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 64
# Weights below these shares of the largest one are looked at only if those above were not enough.
_FLOORS = (2.0**-5, 2.0**-10, 2.0**-16, 2.0**-24)


def argmax(rows: Tensor) -> list[int]:
    """The place of the largest value of each row. `rows`: `(rows, width)`."""
    if rows.device.type != "cpu":
        on_device: list[int] = rows.argmax(-1).tolist()
        return on_device
    if rows.element_size() != 2:
        return _argmax(rows)
    # The bits of a positive 16-bit float rise with its value, and integers are compared many at once.
    bits = rows.view(torch.int16).numpy()
    found: list[int] = bits.argmax(-1).tolist()
    for row, place in enumerate(found):
        if bits[row, place] <= 0:
            found[row] = _argmax(rows[row : row + 1].float())[0]
    return found


def _argmax(rows: Tensor) -> list[int]:
    found: list[int] = rows.numpy().argmax(-1).tolist()
    return found


def topk(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`torch.topk(rows, count)`: the values, largest first, and their places, `(rows, count)` each."""
    width = rows.shape[-1]
    count = min(count, width)
    if 4 * count * BLOCK > width:
        values, places = rows.topk(count, dim=-1)
        return values, places
    # The largest `count` values lie in the `count` blocks with the largest maxima.
    whole = width - width % BLOCK
    maxima = rows[:, :whole].reshape(rows.shape[0], -1, BLOCK).amax(-1)
    places = maxima.topk(count, dim=-1).indices[..., None] * BLOCK + torch.arange(BLOCK, device=rows.device)
    rest = torch.arange(whole, width, device=rows.device).expand(rows.shape[0], -1)
    places = torch.cat([places.flatten(1), rest], dim=-1)
    values, chosen = rows.gather(1, places).topk(count, dim=-1)
    return values, places.gather(1, chosen)


def block_sums(weights: Tensor) -> Tensor:
    """The sums over each `BLOCK` of a row of weights, in float64."""
    whole = weights.shape[0] - weights.shape[0] % BLOCK
    sums = weights[:whole].view(-1, BLOCK).sum(-1).double()
    return sums if whole == weights.shape[0] else torch.cat([sums, weights[whole:].double().sum()[None]])


def inverse(weights: Tensor, uniform: float) -> int:
    """The place at which the cumulative sum of a row of `weights` passes the share `uniform` of its total."""
    cumulative = block_sums(weights).cumsum(0)
    target = uniform * cumulative[-1]
    block = _first_above(cumulative, target)
    start = BLOCK * block
    if block:
        target = target - cumulative[block - 1]
    return start + _first_above(weights[start : start + BLOCK].double().cumsum(0), target)


def _first_above(cumulative: Tensor, target: Tensor) -> int:
    index = int(torch.searchsorted(cumulative, target, right=True))
    return min(index, cumulative.shape[0] - 1)


def nucleus(weights: Tensor, count: int, share: float, ratio: float) -> tuple[Tensor, Tensor]:
    """The largest of a row of weights, largest first, and their places.

    They are at least `count` (0: not asked for), else of `share` of the total (1: likewise), or at least all
    that are not below `ratio` of the largest one (0: likewise).
    """
    row = weights.numpy()
    top = row.max()
    wanted = share * float(block_sums(weights).sum()) if share < 1 and not count else math.inf
    for floor in _FLOORS:
        places = np.flatnonzero(row >= floor * top)
        values = row[places]
        # Fewer than `count` would change the total that a share is taken of later.
        reached = floor <= ratio or values.sum(dtype=np.float64) >= wanted
        enough = len(places) >= count if count else reached
        if enough:
            break
    else:
        places, values = np.arange(row.shape[0]), row
    order = np.argsort(-values, kind="stable")
    return torch.from_numpy(values[order]), torch.from_numpy(places[order])
