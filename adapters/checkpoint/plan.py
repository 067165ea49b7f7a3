"""What an adapter's files hold for one base, known and checked before any tensor is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapters.base import BaseSpec
from adapters.checkpoint.config import AdapterConfig, LoraConfig
from adapters.checkpoint.config_fields import TASKS
from adapters.checkpoint.keys import Names, View, sort_names, view_for
from adapters.checkpoint.safetensors_file import TensorInfo
from adapters.checkpoint.variants.common import no_linear, text
from adapters.checkpoint.variants.experts import check_experts, targeted_parameters
from adapters.checkpoint.variants.per_expert import check_per_expert, per_expert_modules
from adapters.checkpoint.variants.whole import (
    check_biases,
    check_copies,
    head_of,
    replaced_modules,
    token_ids,
)
from adapters.errors import InvalidAdapter

Shape = tuple[int, ...]
Parts = Mapping[str, str]
ShapeOf = Callable[[str], Shape]


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """Everything that a file is for, by name; modules are named as the adapter names them (`view`).

    Attributes:
        linears, embeddings, experts: the wrapped linear maps, tables and parameters, with their tensors by
            part.
        per_expert: the parameters that were layers of each expert, with those layers' modules.
        replaced, head: modules trained as a whole, and the parameters of a task's head.
        tokens: ids of trained tokens by table.
        parameters: numbers in all tensors of the file.
        applied: numbers in those that decide about answers.
    """

    config: AdapterConfig
    header: Mapping[str, TensorInfo]
    names: Names
    view: View
    linears: Mapping[str, Parts]
    embeddings: Mapping[str, Parts]
    experts: Mapping[str, Parts]
    per_expert: Mapping[str, tuple[str, ...]]
    replaced: Mapping[str, Parts]
    head: Parts
    tokens: Mapping[str, tuple[int, ...]]
    parameters: int
    applied: int

    @property
    def base(self) -> BaseSpec:
        """The base, its modules named as the adapter names them."""
        return self.view.base


def plan_adapter(config: AdapterConfig, header: Mapping[str, TensorInfo], base: BaseSpec) -> AdapterPlan:
    """Check every name and shape against the config and the base.

    Raises:
        InvalidAdapter: naming the first tensor or module that does not fit.
    """
    if base.kind not in TASKS[config.task]:
        raise InvalidAdapter(
            f"adapter_config.json: task_type {config.task!r} needs a base of kind "
            f"{' or '.join(TASKS[config.task])}; {base.name} is of kind {base.kind}"
        )
    if isinstance(config, LoraConfig) and config.invocation and base.kind != "decoder":
        raise InvalidAdapter(
            f"adapter_config.json: alora_invocation_tokens acts on a decoder's tokens; {base.name} is of "
            f"kind {base.kind}; train without alora_invocation_tokens"
        )
    names = sort_names(header, config)
    view = view_for(base, names)
    base = view.base

    def shape_of(key: str) -> Shape:
        return header[key].shape

    linears: dict[str, Parts] = {}
    embeddings: dict[str, Parts] = {}
    experts: dict[str, Parts] = {}
    per_expert: dict[str, tuple[str, ...]] = {}
    tokens: dict[str, tuple[int, ...]] = {}
    if isinstance(config, LoraConfig):
        if not config.target_parameters:
            per_expert = per_expert_modules(names.modules, base, config.targets)
        linears, embeddings, experts = _wrapped(config, names, base, per_expert)
        _check_linears(config, linears, shape_of, base)
        _check_targets(config, {**linears, **embeddings}, experts, per_expert, base)
        _check_ranks(config, linears, embeddings, shape_of, base)
        for parameter, parts in experts.items():
            check_experts(parameter, parts, shape_of, config.rank_for(parameter), base, config.raw)
        for parameter, modules in per_expert.items():
            check_per_expert(base.experts[parameter], modules, names.modules, shape_of, config)
        if (experts or per_expert) and (config.init or config.blocks or config.peft_type != "LORA"):
            raise InvalidAdapter(
                f"adapter_config.json: {config.variant} on experts is not supported; train them as plain LoRA"
            )
        tokens = token_ids(names, config, base, shape_of)
        check_copies(names, base, shape_of)
    head = head_of(names, config, base, shape_of)
    replaced = replaced_modules(names, head, base, shape_of, config)
    wrapped = linears if isinstance(config, LoraConfig) else _linears_with(names.tuner, base)
    check_biases(names, wrapped, config, base, shape_of)
    used = sum(math.prod(header[key].shape) for key in names.used())
    total = sum(math.prod(info.shape) for info in header.values())
    return AdapterPlan(
        config,
        header,
        names,
        view,
        linears,
        embeddings,
        experts,
        per_expert,
        replaced,
        head,
        tokens,
        total,
        used,
    )


def _wrapped(
    config: LoraConfig, names: Names, base: BaseSpec, per_expert: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, Parts], dict[str, Parts], dict[str, Parts]]:
    """The file's wrapped modules: linear maps (or what claims to be one), tables, parameters of experts."""
    parameters = targeted_parameters(config.target_parameters, base)
    experts = {
        parameter: names.modules[module]
        for parameter, module in parameters.items()
        if module in names.modules and module not in base.linears
    }
    claimed = {parameters[parameter] for parameter in experts}.union(*per_expert.values())
    embeddings = {module: parts for module, parts in names.modules.items() if "embedding_A" in parts}
    linears = {
        module: parts
        for module, parts in names.modules.items()
        if module not in embeddings and module not in claimed
    }
    missing = next((p for p, m in parameters.items() if m not in names.modules), None)
    if missing is not None:
        raise InvalidAdapter(
            f"adapter_config.json: target_parameters names {missing}, but the weights hold no tensors for "
            "it; the file is incomplete, or made for another base"
        )
    return linears, embeddings, experts


def _check_linears(
    config: LoraConfig, linears: Mapping[str, Parts], shape_of: ShapeOf, base: BaseSpec
) -> None:
    misfits = [
        fault
        for module, parts in linears.items()
        if (fault := _misfit(module, parts, shape_of, config, base)) is not None
    ]
    if 2 * len(misfits) > len(linears):
        raise InvalidAdapter(
            f"the adapter was made for another base: {len(misfits)} of its {len(linears)} modules do not fit "
            f"{base.name}; first, {misfits[0]}"
        )
    if misfits:
        raise InvalidAdapter(misfits[0])


def _misfit(module: str, parts: Parts, shape_of: ShapeOf, config: LoraConfig, base: BaseSpec) -> str | None:
    """Why the module's tensors do not fit the base, whatever their rank; None if they do."""
    linear = base.linears.get(module)
    if linear is None:
        return f"tensor {parts['A']!r}: {no_linear(module, base)}"
    a, b = shape_of(parts["A"]), shape_of(parts["B"])
    widths = {linear.in_features, linear.in_features // max(config.blocks, 1)}
    if len(a) != 2 or a[1] not in widths:
        return f"tensor {parts['A']!r} has shape {text(a)}; {base.name} needs (r, {linear.in_features})"
    if len(b) != 2 or b[0] != linear.out_features:
        return f"tensor {parts['B']!r} has shape {text(b)}; {base.name} needs ({linear.out_features}, r)"
    return None


def _check_ranks(
    config: LoraConfig,
    linears: Mapping[str, Parts],
    embeddings: Mapping[str, Parts],
    shape_of: ShapeOf,
    base: BaseSpec,
) -> None:
    """The shapes of all parts, which have the rank that the config gives their module."""
    for module, parts in linears.items():
        rank, out = config.rank_for(module), base.linears[module].out_features
        ranks = {rank, rank // config.blocks} if config.blocks else {rank}
        for part, place, allowed in (("A", 0, {rank}), ("B", 1, ranks)):
            shape = shape_of(parts[part])
            if shape[place] not in allowed:
                raise InvalidAdapter(
                    f"tensor {parts[part]!r} has rank {shape[place]} (shape {text(shape)}); "
                    f"adapter_config.json gives this module rank {rank}"
                )
        others = {"E": (rank, 1), "diag": (rank,), "bias": (out,), "magnitude_vector": (out,)}
        needed = {
            "E": config.peft_type == "ADALORA",
            "diag": config.kasa,
            "bias": config.lora_bias,
            "magnitude_vector": config.use_dora,
        }
        for part, shape in others.items():
            if needed[part] and part not in parts:
                raise InvalidAdapter(f"tensor {parts['A']!r} has no lora_{part} beside it")
            if part in parts and shape_of(parts[part]) != shape:
                raise InvalidAdapter(
                    f"tensor {parts[part]!r} has shape {text(shape_of(parts[part]))}; {base.name} needs "
                    f"{text(shape)}"
                )
    for module, parts in embeddings.items():
        table = base.embeddings.get(module)
        if table is None:
            raise InvalidAdapter(
                f"tensor {parts['embedding_A']!r}: {module} is not an embedding of tokens of {base.name}"
            )
        if "magnitude_vector" in parts:
            raise InvalidAdapter(
                f"tensor {parts['magnitude_vector']!r}: DoRA on an embedding is not supported; train without "
                f"{module} among the target_modules"
            )
        rank = config.rank_for(module)
        for part, shape in (("embedding_A", (rank, table[0])), ("embedding_B", (table[1], rank))):
            if shape_of(parts[part]) != shape:
                raise InvalidAdapter(
                    f"tensor {parts[part]!r} has shape {text(shape_of(parts[part]))}; {base.name} needs "
                    f"{text(shape)}"
                )


def _check_targets(
    config: LoraConfig,
    wrapped: Mapping[str, Parts],
    experts: Mapping[str, Parts],
    per_expert: Mapping[str, tuple[str, ...]],
    base: BaseSpec,
) -> None:
    """The file must hold exactly the modules that the config says were wrapped."""
    parameters = targeted_parameters(config.target_parameters, base)
    by_parameter = {module for parameter, module in parameters.items() if parameter not in experts}
    for module in (*base.linears, *base.embeddings):
        if (config.targets(module) or module in by_parameter) == (module in wrapped):
            continue
        if module in wrapped:
            first = next(iter(wrapped[module].values()))
            raise InvalidAdapter(
                f"tensor {first!r}: adapter_config.json does not target {module}; "
                "correct target_modules, exclude_modules or layers_to_transform"
            )
        if module in base.embeddings and config.wrapped.all_linear:
            continue
        raise InvalidAdapter(
            f"adapter_config.json targets {module}, but the weights hold no tensors for it; "
            "the file is incomplete, or made for another base"
        )
    routers = {parameter.rpartition(".")[0] for parameter in per_expert}
    for module in sorted(base.other_modules - base.embeddings.keys() - routers):
        if config.targets(module) and not config.wrapped.all_linear:
            raise InvalidAdapter(
                f"adapter_config.json: target_modules matches {module}, which is not a linear layer of "
                f"{base.name}; LoRA on it is not supported"
            )


def _linears_with(names: Mapping[str, str], base: BaseSpec) -> dict[str, object]:
    """The linear layers that any of these tensors belongs to."""
    found: dict[str, object] = {}
    for name in names:
        parts = name.split(".")
        modules = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        module = next((module for module in modules if module in base.linears), None)
        if module is not None:
            found[module] = name
    return found
