"""From the two files of an adapter to its deltas, checked in full against one base.

    header -> pairs of tensors -> plan (fits config and base) -> data (finite, in the wanted type)

Everything that can be told from the header is checked before any data is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.config import LoraConfig, parse_config
from adapters.delta import AdapterWeights, ModuleDelta, all_finite
from adapters.digest import content_digest
from adapters.errors import InvalidAdapter
from adapters.keys import FactorKeys, pair_factors
from adapters.limits import AdapterLimits
from adapters.safetensors_file import TensorInfo, map_file, read_header, tensor_at


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module's tensors by name, with the rank and scale that its config gives it."""

    keys: FactorKeys
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What an adapter wraps, known without its data. `modules` is sorted by qualified module name."""

    config: LoraConfig
    modules: Mapping[str, PlannedModule]
    parameters: int

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(planned.rank for planned in self.modules.values())

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The distinct last components of the module names, sorted."""
        return tuple(sorted({module.rpartition(".")[2] for module in self.modules}))


def read_adapter(
    config: bytes,
    weights: Path,
    base: BaseSpec,
    limits: AdapterLimits,
    *,
    dtype: torch.dtype | None = None,
    digest: str | None = None,
) -> AdapterWeights:
    """The adapter of `config` (the text of adapter_config.json) and `weights` (a safetensors file).

    Args:
        dtype: the type to cast to; None keeps the file's, and the tensors mapped from it.
        digest: the content digest, where it is known already; None computes it.

    Raises:
        InvalidAdapter: anything in either file that this base cannot serve exactly as it was trained.
        AdapterTooLarge: over one of `limits`.
    """
    header = read_header(weights, limits)
    plan = plan_adapter(parse_config(config, limits), header, base)
    deltas = dict(read_deltas(plan, weights, header, dtype))
    return AdapterWeights(digest or content_digest(plan.config, weights, limits), deltas)


def plan_adapter(config: LoraConfig, header: Mapping[str, TensorInfo], base: BaseSpec) -> AdapterPlan:
    """Check every name and shape against the config and the base.

    Raises:
        InvalidAdapter: naming the first tensor or module that does not fit.
    """
    modules = pair_factors(header)
    misfits = [
        fault
        for module, keys in modules.items()
        if (fault := _misfit(module, keys, header, base)) is not None
    ]
    if 2 * len(misfits) > len(modules):
        raise InvalidAdapter(
            f"the adapter was made for another base: {len(misfits)} of its {len(modules)} modules do not fit "
            f"{base.name}; first, {misfits[0]}"
        )
    if misfits:
        raise InvalidAdapter(misfits[0])
    _check_targets(config, modules, base)
    planned = {}
    for module, keys in modules.items():
        planned[module] = PlannedModule(keys, config.rank_for(module), config.scale_for(module))
        _check_rank(planned[module], header)
    return AdapterPlan(config, planned, sum(math.prod(info.shape) for info in header.values()))


def read_deltas(
    plan: AdapterPlan, weights: Path, header: Mapping[str, TensorInfo], dtype: torch.dtype | None = None
) -> Iterator[tuple[str, ModuleDelta]]:
    """Each module's delta, one at a time. Tensors that need no cast stay mapped from the file.

    Raises:
        InvalidAdapter: a value is not finite, or does not fit `dtype`.
    """
    data = map_file(weights, header)
    checked = _all_finite(data, header)
    for module, planned in plan.modules.items():
        a, b = (
            _converted(key, tensor_at(data, header[key]), dtype, checked)
            for key in (planned.keys.a, planned.keys.b)
        )
        yield module, ModuleDelta(a, b, planned.scale)


def _all_finite(data: Tensor, header: Mapping[str, TensorInfo]) -> bool:
    """Whether every value of the file is finite, in one pass; False also if that can't be told so.

    The tensors lie end to end, so that those of one type are one tensor.
    """
    infos = sorted(header.values(), key=lambda info: info.start)
    whole = TensorInfo(
        infos[0].dtype, (sum(math.prod(i.shape) for i in infos),), infos[0].start, infos[-1].end
    )
    if any(info.dtype != whole.dtype for info in infos):
        return False
    return math.isfinite(tensor_at(data, whole).sum(dtype=torch.float32).item())


def _misfit(module: str, keys: FactorKeys, header: Mapping[str, TensorInfo], base: BaseSpec) -> str | None:
    """Why the module's tensors do not fit the base, whatever their rank; None if they do."""
    linear = base.linears.get(module)
    if linear is None:
        if module in base.other_modules:
            return f"tensor {keys.a!r}: {module} is not a linear layer of {base.name}"
        return f"tensor {keys.a!r}: {base.name} has no such module"
    a, b = header[keys.a].shape, header[keys.b].shape
    if len(a) != 2 or a[1] != linear.in_features:
        return f"tensor {keys.a!r} has shape {_text(a)}; {base.name} needs (r, {linear.in_features})"
    if len(b) != 2 or b[0] != linear.out_features:
        return f"tensor {keys.b!r} has shape {_text(b)}; {base.name} needs ({linear.out_features}, r)"
    return None


def _text(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _check_rank(planned: PlannedModule, header: Mapping[str, TensorInfo]) -> None:
    for key, place in ((planned.keys.a, 0), (planned.keys.b, 1)):
        shape = header[key].shape
        if shape[place] != planned.rank:
            raise InvalidAdapter(
                f"tensor {key!r} has rank {shape[place]} (shape {_text(shape)}); "
                f"adapter_config.json gives this module rank {planned.rank}"
            )


def _check_targets(config: LoraConfig, modules: Mapping[str, FactorKeys], base: BaseSpec) -> None:
    """The file must hold exactly the modules that the config says were wrapped."""
    for module in base.linears:
        if config.targets(module) == (module in modules):
            continue
        if module in modules:
            raise InvalidAdapter(
                f"tensor {modules[module].a!r}: adapter_config.json does not target {module}; "
                "correct target_modules, exclude_modules or layers_to_transform"
            )
        raise InvalidAdapter(
            f"adapter_config.json targets {module}, but the weights hold no tensors for it; "
            "the file is incomplete, or made for another base"
        )
    for module in sorted(base.other_modules):
        if config.targets(module):
            raise InvalidAdapter(
                f"adapter_config.json: target_modules matches {module}, which is not a linear layer of "
                f"{base.name}; LoRA on it is not supported yet"
            )


def _converted(key: str, stored: Tensor, dtype: torch.dtype | None, finite: bool) -> Tensor:
    """`stored` in `dtype`, all of it finite; `finite`: it is known to be so as it is stored."""
    tensor = stored.to(dtype or stored.dtype)
    if (finite and tensor is stored) or all_finite(tensor):
        return tensor
    if dtype is not None and all_finite(stored):
        raise InvalidAdapter(f"tensor {key!r} has values too large for {dtype}")
    raise InvalidAdapter(f"tensor {key!r} holds NaN or infinity; the training diverged")
