"""Adapters that were trained before transformers joined a layer's experts in two parameters.

They have a pair of factors for each expert's own layers, such as `mlp.experts.0.gate_proj`. As in PEFT's
transformers_weight_conversion.py, A of an expert's gate and up projection stand on one another, and B on the
diagonal: `[W1; W3] + s [B1 0; 0 B3] [A1; A3]`. Mixtral's router was a linear layer, `block_sparse_moe.gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from adapters.base import BaseSpec, ExpertsSpec
from adapters.checkpoint.config import LoraConfig
from adapters.checkpoint.variants.common import fault, text
from adapters.delta import ExpertsDelta
from adapters.errors import InvalidAdapter

# Of one expert, the layers that each fused parameter was, in their order in it.
_PROJECTIONS: tuple[Mapping[str, tuple[str, ...]], ...] = (
    {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)},
    {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)},
)
_NEW, _OLD = ".mlp.", ".block_sparse_moe."  # Mixtral's


def per_expert_modules(
    modules: Collection[str], base: BaseSpec, targets: Callable[[str], bool]
) -> dict[str, tuple[str, ...]]:
    """The layers that each parameter of `base.experts` was, projection by projection, expert by expert.

    Args:
        modules: all that a file has factors for, as it names them.
        targets: whether the config targets a module.

    Returns:
        By qualified parameter name, for those that the adapter adds to; none if it is not of this kind.

    Raises:
        InvalidAdapter: tensors for one part only of a parameter, or not for all that the config targets.
    """
    old = any(_OLD in module for module in modules)
    projections = _projections(modules)
    if not (old or projections):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for name, spec in base.experts.items():
        wanted = _layers(name.replace(_NEW, _OLD) if old else name, spec, projections)
        present = [module for module in wanted if module in modules]
        if not present and not any(map(targets, wanted)):
            continue
        missing = next((module for module in wanted if module not in modules), None)
        if missing is not None and targets(missing):
            raise InvalidAdapter(
                f"adapter_config.json targets {missing}, but the weights hold no tensors for it; "
                "the file is incomplete, or made for another base"
            )
        if missing is not None:
            raise InvalidAdapter(
                f"the weights hold tensors for {present[0]}, but not for {missing}: both are the parameter "
                f"{name} here, and PEFT takes all of one or none"
            )
        stray = next((module for module in wanted if not targets(module)), None)
        if stray is not None:
            raise InvalidAdapter(
                f"the weights hold tensors for {stray}, which adapter_config.json does not target; "
                "correct target_modules, exclude_modules or layers_to_transform"
            )
        found[name] = tuple(wanted)
    return found


def _projections(modules: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """How the file names the layers of an expert."""
    names = {module.rpartition(".")[2] for module in modules if ".experts." in module}
    return next((layers for layers in _PROJECTIONS if not names.isdisjoint(chain(*layers.values()))), {})


def _layers(name: str, spec: ExpertsSpec, projections: Mapping[str, tuple[str, ...]]) -> list[str]:
    owner, _, parameter = name.rpartition(".")
    if spec.router:
        return [owner]
    own = () if spec.transposed else projections.get(parameter, ())
    return [f"{owner}.{expert}.{projection}" for projection in own for expert in range(spec.experts)]


def check_per_expert(
    spec: ExpertsSpec,
    modules: Sequence[str],
    parts: Mapping[str, Mapping[str, str]],
    shape_of: Callable[[str], tuple[int, ...]],
    config: LoraConfig,
) -> None:
    """See that the factors of `modules`, which are `spec`, fit it.

    Args:
        parts: the names of each module's tensors by part (`A`, `B`).
        shape_of: of a tensor by its name.

    Raises:
        InvalidAdapter: naming the tensor that does not, or what can't be applied.
    """
    joined = 1 if spec.router else len(modules) // spec.experts
    if joined > 1 and config.use_rslora:
        raise fault(
            "use_rslora: once gate and up projections of experts are one parameter, PEFT scales them by "
            "sqrt(2) more than in training; save with use_rslora=false and lora_alpha=alpha * sqrt(r)"
        )
    rank, scale = config.rank_for(modules[0]), config.scale_for(modules[0])
    shapes = {"A": (rank, spec.in_features), "B": (spec.out_features // joined, rank)}
    for module in modules:
        if (config.rank_for(module), config.scale_for(module)) != (rank, scale):
            raise fault(
                f"rank_pattern or alpha_pattern tells {module} from {modules[0]}; both are one parameter "
                f"here, {spec.name}, which has one rank and scale"
            )
        for part, key in parts[module].items():
            if part not in shapes:
                raise InvalidAdapter(f"tensor {key!r}: experts and routers can have lora_A and lora_B only")
            if shape_of(key) != shapes[part]:
                raise InvalidAdapter(
                    f"tensor {key!r} has shape {text(shape_of(key))}; {spec.name} needs {text(shapes[part])}"
                )


def joined_delta(spec: ExpertsSpec, a: Sequence[Tensor], b: Sequence[Tensor], scale: float) -> ExpertsDelta:
    """The record of `spec` from the factors of `per_expert_modules`, in that order."""
    count = spec.experts
    return ExpertsDelta(
        torch.stack([torch.cat(list(a[expert::count])) for expert in range(count)]),
        torch.stack([_on_diagonal(b[expert::count]) for expert in range(count)]),
        scale,
    )


def _on_diagonal(matrices: Sequence[Tensor]) -> Tensor:
    joined: Tensor = torch.block_diag(*matrices)  # type: ignore[no-untyped-call]
    return joined
