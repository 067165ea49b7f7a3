"""What the readers of all tuners share: which modules are wrapped, checked fields, checked tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from adapters.base import BaseSpec, LinearSpec
from adapters.checkpoint.patterns import NamePattern
from adapters.delta import ModuleDelta
from adapters.errors import InvalidAdapter

BaseWeights = Callable[[str], Tensor]
"""The frozen base's parameter of a qualified name (`model.layers.0.self_attn.q_proj.weight`), float32.

Weights of linear maps are `(out_features, in_features)`, whichever way round the module stores them.
"""

Number = TypeVar("Number", int, float)
ALL_LINEAR = "all-linear"
MAX_PATTERNS = 4096
MAX_REGULAR_EXPRESSIONS = 64
_LAYER_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")
_PLAIN_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)


class Tuner(Protocol):
    """A module of this package for one `peft_type`.

    `APPLIED`, `NO_EFFECT` (with why) and `REFUSED` (with what to do) name the tuner's own config fields;
    those that all share are in `config_fields.py`. `records` gets the tensors of the tuner itself (those of
    `modules_to_save` and `bias` are taken out before), as stored, without the prefix `base_model.model.`, or
    without `base_model.` where a tensor belongs to no module (`vera_A`).
    """

    APPLIED: Collection[str]
    NO_EFFECT: Mapping[str, str]
    REFUSED: Mapping[str, str]

    def records(
        self, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], base: BaseSpec, weights: BaseWeights
    ) -> dict[str, ModuleDelta]: ...


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """Some modules: those named (in full, or by what follows a dot), or those that a pattern matches."""

    names: frozenset[str] = frozenset()
    pattern: NamePattern | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any], field: str) -> ModuleNames:
        """A list of names, or one regular expression, as PEFT has them."""
        value = raw.get(field)
        if isinstance(value, str) and value:
            return cls(pattern=NamePattern(value, f"adapter_config.json: {field}"))
        return cls(frozenset(name_list(raw, field)))

    def holds(self, module: str) -> bool:
        if self.pattern is not None:
            return self.pattern.matches(module)
        return any(suffix in self.names for suffix in suffixes(module))


@dataclass(frozen=True, slots=True)
class Targets:
    """The modules that PEFT wraps: its `check_target_module_exists`. `all_linear`: linear layers only."""

    target_modules: ModuleNames
    exclude_modules: ModuleNames
    layers: frozenset[int]
    layers_pattern: tuple[re.Pattern[str], ...]
    all_linear: bool = False

    @classmethod
    def parse(cls, raw: Mapping[str, Any], *, optional: bool = False) -> Targets:
        """From `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern`.

        Raises:
            InvalidAdapter: not as PEFT writes them, or (unless `optional`) no `target_modules`.
        """
        _check_layers(raw)
        return cls(
            _target_modules(raw, optional),
            ModuleNames.parse(raw, "exclude_modules"),
            _layers(raw.get("layers_to_transform")),
            tuple(_layer_pattern(name) for name in name_list(raw, "layers_pattern")) or (_LAYER_INDEX,),
            _is_all_linear(raw),
        )

    def holds(self, module: str) -> bool:
        """Whether PEFT would wrap `module`."""
        if self.exclude_modules.holds(module) or not self.target_modules.holds(module):
            return False
        # PEFT applies layers_to_transform only to modules that are not named in full.
        if not self.layers or module in self.target_modules.names:
            return True
        matches = (pattern.match(module) for pattern in self.layers_pattern)
        found = next((match for match in matches if match), None)
        return found is not None and int(found["idx"]) in self.layers


def fault(message: str) -> InvalidAdapter:
    """An error in the config."""
    return InvalidAdapter(f"adapter_config.json: {message}")


def is_off(value: object) -> bool:
    """Whether a refused or unknown field has a value that asks for nothing."""
    return value is None or value is False or value in ([], {}, "")


def check_fields(
    raw: Mapping[str, Any],
    applied: Collection[str],
    no_effect: Collection[str],
    refused: Mapping[str, str],
) -> None:
    """Every field is applied, without effect, or refused; an unknown one is refused unless it is off.

    Raises:
        InvalidAdapter: naming the first field that is refused.
    """
    for field, value in raw.items():
        if field in applied or field in no_effect or is_off(value):
            continue
        if field in refused:
            raise fault(f"{field}: {refused[field]}")
        raise fault(f"unknown field {field!r:.60} with value {value!r:.60}; remove it if it has no effect")


def by_module(
    tensors: Mapping[str, Tensor],
    parts: Collection[str],
    raw: Mapping[str, Any],
    base: BaseSpec,
) -> dict[str, dict[str, Tensor]]:
    """Each wrapped module's tensors by part, where a name is `<module>.<part>`; sorted by module.

    Raises:
        InvalidAdapter: a tensor of another name, a module that is no linear layer of the base, or modules
            that are not those that the config targets.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part = next((part for part in parts if name.endswith(f".{part}")), None)
        if part is None:
            raise InvalidAdapter(f"unknown tensor {name!r}; {raw['peft_type']} has {', '.join(parts)}")
        module = name.removesuffix(f".{part}")
        linear_of(module, name, base)
        found.setdefault(module, {})[part] = tensor
    check_targets(found, Targets.parse(raw), base)
    return dict(sorted(found.items()))


def linear_of(module: str, name: str, base: BaseSpec) -> LinearSpec:
    """The shape of `module`, to which the tensor `name` belongs.

    Raises:
        InvalidAdapter: it is not a linear layer of the base.
    """
    linear = base.linears.get(module)
    if linear is None:
        raise InvalidAdapter(f"tensor {name!r}: {no_linear(module, base)}")
    return linear


def no_linear(module: str, base: BaseSpec) -> str:
    """Why nothing can be added to `module`, which is in no `linears`, and what there is."""
    kinds = sorted({linear.rpartition(".")[2] for linear in base.linears})
    instead = f"; its linear layers are {', '.join(kinds)}" if kinds else ""
    if module in base.other_modules:
        return f"{module} is not a linear layer of {base.name}{instead}"
    return f"{base.name} has no such module{instead}"


def check_targets(found: Collection[str], targets: Targets, base: BaseSpec) -> None:
    """The file must hold exactly the modules that the config says were wrapped.

    Raises:
        InvalidAdapter: naming the first module that is in one of them only.
    """
    for module in base.linears:
        if targets.holds(module) == (module in found):
            continue
        if module in found:
            raise InvalidAdapter(
                f"the weights hold tensors for {module}, which adapter_config.json does not target; "
                "correct target_modules, exclude_modules or layers_to_transform"
            )
        raise InvalidAdapter(
            f"adapter_config.json targets {module}, but the weights hold no tensors for it; "
            "the file is incomplete, or made for another base"
        )
    for module in sorted(base.other_modules):
        if not targets.all_linear and targets.holds(module) and module not in found:
            raise fault(
                f"target_modules matches {module}, which is not a linear layer of {base.name}; "
                "LoRA on it is not supported"
            )


def check_shape(name: str, tensor: Tensor, shape: Iterable[int]) -> Tensor:
    """`tensor`, if it has this shape.

    Raises:
        InvalidAdapter: it has not.
    """
    wanted = tuple(shape)
    if tuple(tensor.shape) != wanted:
        raise InvalidAdapter(f"tensor {name!r} has shape {text(tensor.shape)}; the base needs {text(wanted)}")
    return tensor


def no_factors(linear: LinearSpec) -> tuple[Tensor, Tensor]:
    """`A` and `B` of rank 0, where only the other terms of a record act."""
    return torch.zeros(0, linear.in_features), torch.zeros(linear.out_features, 0)


def text(shape: Iterable[int]) -> str:
    """A shape as errors show it."""
    return f"({', '.join(map(str, shape))})"


def positive(value: object, field: str) -> int:
    """An integer of at least 1.

    Raises:
        InvalidAdapter: it is not.
    """
    if type(value) is not int or value < 1:
        raise fault(f"{field} must be an integer of at least 1, not {value!r:.60}")
    return value


def number(value: object, field: str) -> float:
    """A finite number.

    Raises:
        InvalidAdapter: it is not.
    """
    try:
        result = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise fault(f"{field} must be a finite number, not {value!r:.60}")
    return result


def boolean(raw: Mapping[str, Any], field: str, default: bool = False) -> bool:
    """A field that is true or false.

    Raises:
        InvalidAdapter: it is neither.
    """
    value = raw.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise fault(f"{field} must be true or false, not {value!r:.60}")
    return value


def name_list(raw: Mapping[str, Any], field: str) -> list[str]:
    """A list of names; one name alone counts as a list of one.

    Raises:
        InvalidAdapter: it is no such list.
    """
    value = raw.get(field) or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise fault(f"{field} must be a list of module names, not {value!r:.60}")
    return names


def pattern_table(
    raw: Mapping[str, Any], field: str, convert: Callable[[object, str], Number]
) -> tuple[tuple[NamePattern, Number], ...]:
    """The entries of `rank_pattern` and the like, in the order of the file, which decides between them.

    Raises:
        InvalidAdapter: it does not map names or regular expressions to what `convert(value, field)` takes.
    """
    value = raw.get(field)
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise fault(f"{field} must map module names to numbers, not {value!r:.60}")
    if len(value) > MAX_PATTERNS:
        raise fault(f"{field} has {len(value)} entries; the most is {MAX_PATTERNS}")
    patterns = tuple(
        (
            NamePattern(key, f"adapter_config.json: {field}", suffix=True),
            convert(item, f"{field}[{key!r:.60}]"),
        )
        for key, item in value.items()
    )
    if sum(not pattern.plain for pattern, _ in patterns) > MAX_REGULAR_EXPRESSIONS:
        raise fault(f"{field} has over {MAX_REGULAR_EXPRESSIONS} regular expressions; use module names")
    return patterns


def suffixes(module: str) -> list[str]:
    """`a.b.c` -> `a.b.c`, `b.c`, `c`."""
    parts = module.split(".")
    return [".".join(parts[index:]) for index in range(len(parts))]


def _check_layers(raw: Mapping[str, Any]) -> None:
    """The combinations that PEFT itself refuses."""
    layers, patterns = raw.get("layers_to_transform"), raw.get("layers_pattern")
    if isinstance(raw.get("target_modules"), str) and (layers is not None or patterns is not None):
        raise fault(
            "layers_to_transform and layers_pattern need a list of target_modules; "
            "write the layers into the pattern instead"
        )
    if patterns and layers is None:
        raise fault("layers_pattern needs layers_to_transform too")


def _target_modules(raw: Mapping[str, Any], optional: bool) -> ModuleNames:
    value = raw.get("target_modules")
    if not value:
        if optional:
            return ModuleNames()
        raise fault("target_modules is missing; name the modules that were trained")
    if _is_all_linear(raw):
        # PEFT leaves out the output head, which in a causal model is the linear layer at the top level.
        return ModuleNames(pattern=NamePattern(r".*\..*", "target_modules"))
    return ModuleNames.parse(raw, "target_modules")


def _is_all_linear(raw: Mapping[str, Any]) -> bool:
    value = raw.get("target_modules")
    return isinstance(value, str) and value.lower() == ALL_LINEAR


def _layers(value: object) -> frozenset[int]:
    layers = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise fault(f"layers_to_transform must be layer numbers, not {value!r:.60}")
    return frozenset(layers)


def _layer_pattern(name: str) -> re.Pattern[str]:
    if not _PLAIN_NAME.fullmatch(name):
        raise fault(f"layers_pattern {name!r:.60} must be a plain module name such as 'layers'")
    return re.compile(rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\.")
