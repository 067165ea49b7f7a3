"""Steps that several tuners' readers share: one tensor of a module, its rank, the finished record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.base import LinearSpec
from adapters.checkpoint.variants.common import Number, check_shape, number, pattern_table, positive
from adapters.delta import ModuleDelta, all_finite
from adapters.errors import AdapterTooLarge, InvalidAdapter
from adapters.limits import AdapterLimits

MAX_RANK = AdapterLimits().max_rank
CONVERT = "convert it with peft.convert_to_lora and upload the result"


def part(parts: Mapping[str, Tensor], module: str, name: str, shape: Iterable[int]) -> Tensor:
    """The tensor `<module>.<name>` in float32.

    Raises:
        InvalidAdapter: it is missing, or not of this shape.
    """
    if name not in parts:
        raise InvalidAdapter(f"the weights hold no tensor '{module}.{name}'; the file is incomplete")
    return check_shape(f"{module}.{name}", parts[name], shape).float()


def indices(
    parts: Mapping[str, Tensor], module: str, name: str, shape: Iterable[int], table: Tensor
) -> Tensor:
    """The tensor `<module>.<name>` of row numbers of `table`, int64.

    Raises:
        InvalidAdapter: it is missing, not of this shape, not of integers, or points outside the table.
    """
    part(parts, module, name, shape)
    stored = parts[name]
    if stored.is_floating_point():
        raise InvalidAdapter(f"tensor '{module}.{name}' must hold integers, not {stored.dtype}")
    rows = stored.long()
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(table):
        raise InvalidAdapter(f"tensor '{module}.{name}' points outside the {len(table)} entries of its table")
    return rows


def shared(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor that belongs to no module.

    Raises:
        InvalidAdapter: it is missing.
    """
    if name not in tensors:
        raise InvalidAdapter(f"the weights hold no tensor {name!r}; the file is incomplete")
    return tensors[name]


def one_rank(raw: Mapping[str, Any], default: int, max_rank: int) -> int:
    """The field `r` of a tuner whose modules all have this rank.

    Raises:
        InvalidAdapter: it is not a rank.
        AdapterTooLarge: it is over `max_rank`.
    """
    r = positive(raw.get("r", default), "r")
    if r > max_rank:
        raise AdapterTooLarge(f"adapter_config.json: r is {r}; the largest rank is {max_rank}")
    return r


def ranks(raw: Mapping[str, Any], default: int) -> Callable[[str], int]:
    """Each module's `r`, by `rank_pattern` where that matches.

    Raises:
        InvalidAdapter: either is not as PEFT writes it.
    """
    return _by_pattern(raw, "r", "rank_pattern", positive, default)


def alphas(raw: Mapping[str, Any], default: float) -> Callable[[str], float]:
    """Each module's `alpha`, by `alpha_pattern` where that matches.

    Raises:
        InvalidAdapter: either is not as PEFT writes it.
    """
    return _by_pattern(raw, "alpha", "alpha_pattern", number, default)


def check_rank(module: str, rank: int, max_rank: int, how: str) -> None:
    """Refuse factors that are too large before they are made.

    Raises:
        AdapterTooLarge: `rank` is over `max_rank`.
    """
    if rank > max_rank:
        raise AdapterTooLarge(f"{module} has rank {rank} ({how}); the largest is {max_rank}; {CONVERT}")


def record(
    module: str,
    linear: LinearSpec,
    factors: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
    **terms: Tensor,
) -> ModuleDelta:
    """The record of `module`; `factors` are `A` and `B`, `terms` are the others of `ModuleDelta`.

    Raises:
        InvalidAdapter: a value came out as NaN or infinity.
    """
    if factors is None:
        factors = torch.zeros(0, linear.in_features), torch.zeros(linear.out_features, 0)
    made = ModuleDelta(
        factors[0].contiguous(),
        factors[1].contiguous(),
        scale,
        **{name: term.contiguous() for name, term in terms.items()},
    )
    if not all(all_finite(tensor) for tensor in made.tensors()):
        raise InvalidAdapter(f"the update of {module} is NaN or infinity; the training diverged")
    return made


def _by_pattern(
    raw: Mapping[str, Any],
    field: str,
    patterns: str,
    convert: Callable[[object, str], Number],
    default: Number,
) -> Callable[[str], Number]:
    table = pattern_table(raw, patterns, convert)
    otherwise = convert(raw.get(field, default), field)
    return lambda module: next((value for pattern, value in table if pattern.matches(module)), otherwise)
