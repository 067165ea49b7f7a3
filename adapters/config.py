"""`adapter_config.json` as PEFT writes it: each module's rank and scale, and which modules are wrapped."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from adapters.config_fields import APPLIED, NO_EFFECT, ORDINARY_INITS, REFUSED, TASK_TYPES, is_off
from adapters.errors import AdapterTooLarge, InvalidAdapter
from adapters.limits import AdapterLimits
from adapters.patterns import NamePattern
from adapters.strict_json import parse_object

MAX_PATTERNS = 4096
MAX_REGULAR_EXPRESSIONS = 64
Number = TypeVar("Number", int, float)
ALL_LINEAR = "all-linear"
_LAYER_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")
_PLAIN_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """Some modules: those named (in full, or by what follows a dot), or those that a pattern matches."""

    names: frozenset[str] = frozenset()
    pattern: NamePattern | None = None

    def holds(self, module: str) -> bool:
        if self.pattern is not None:
            return self.pattern.matches(module)
        return any(suffix in self.names for suffix in _suffixes(module))


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The fields that decide what an adapter computes; `r`, `lora_alpha` and the rest are PEFT's names."""

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: tuple[tuple[NamePattern, int], ...]
    alpha_pattern: tuple[tuple[NamePattern, float], ...]
    target_modules: ModuleNames
    exclude_modules: ModuleNames
    layers: frozenset[int]
    layers_pattern: tuple[re.Pattern[str], ...]

    def rank_for(self, module: str) -> int:
        """`r`, or the first entry of `rank_pattern` that matches."""
        return next((rank for pattern, rank in self.rank_pattern if pattern.matches(module)), self.r)

    def alpha_for(self, module: str) -> float:
        """`lora_alpha`, or the first entry of `alpha_pattern` that matches."""
        matching = (alpha for pattern, alpha in self.alpha_pattern if pattern.matches(module))
        return next(matching, self.lora_alpha)

    def scale_for(self, module: str) -> float:
        """What `B A x` is multiplied by: `alpha / r`, or `alpha / sqrt(r)` when rank-stabilised."""
        rank = self.rank_for(module)
        return self.alpha_for(module) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether PEFT would wrap `module`: its `check_target_module_exists`."""
        if self.exclude_modules.holds(module) or not self.target_modules.holds(module):
            return False
        # PEFT applies layers_to_transform only to modules that are not named in full.
        if not self.layers or module in self.target_modules.names:
            return True
        matches = (pattern.match(module) for pattern in self.layers_pattern)
        found = next((match for match in matches if match), None)
        return found is not None and int(found["idx"]) in self.layers


def parse_config(text: bytes, limits: AdapterLimits) -> LoraConfig:
    """The config in the JSON `text`; every field is applied, without effect here, or refused by name.

    Raises:
        InvalidAdapter: not JSON, a field of the wrong type, or an option that cannot be served.
        AdapterTooLarge: the text or a rank is over its limit.
    """
    if len(text) > limits.max_config_bytes:
        raise AdapterTooLarge(
            f"adapter_config.json is {len(text)} bytes; the limit is {limits.max_config_bytes} bytes"
        )
    raw = parse_object(text, "adapter_config.json")
    _check_fields(raw)
    _check_layers(raw)
    patterns = _names(raw, "layers_pattern")
    return LoraConfig(
        r=_rank(raw.get("r", 8), "r", limits),
        lora_alpha=_number(raw.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=_boolean(raw, "use_rslora"),
        rank_pattern=_patterns(raw, "rank_pattern", lambda value, field: _rank(value, field, limits)),
        alpha_pattern=_patterns(raw, "alpha_pattern", _number),
        target_modules=_target_modules(raw),
        exclude_modules=_modules(raw, "exclude_modules"),
        layers=_layers(raw.get("layers_to_transform")),
        layers_pattern=tuple(_layer_pattern(name) for name in patterns) or (_LAYER_INDEX,),
    )


def _fault(message: str) -> InvalidAdapter:
    return InvalidAdapter(f"adapter_config.json: {message}")


def _check_fields(raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise _fault(f'peft_type must be "LORA", not {raw.get("peft_type")!r}')
    if raw.get("task_type") not in TASK_TYPES:
        raise _fault(f'task_type {raw["task_type"]!r} is not supported; only "CAUSAL_LM" is')
    for field, value in raw.items():
        if field in APPLIED or field in NO_EFFECT or is_off(field, value):
            continue
        if field in REFUSED:
            raise _fault(f"{field}: {REFUSED[field]}")
        raise _fault(f"unknown field {field!r:.60} with value {value!r:.60}; remove it if it has no effect")
    init = raw.get("init_lora_weights", True)
    if (
        not isinstance(init, bool | str)
        or (init.lower() if isinstance(init, str) else init) not in ORDINARY_INITS
    ):
        raise _fault(
            f"init_lora_weights {init!r:.60} changes the base while training and is not supported yet; "
            "save with path_initial_model_for_weight_conversion, or train with init_lora_weights=true"
        )


def _check_layers(raw: Mapping[str, Any]) -> None:
    """The combinations that PEFT itself refuses."""
    layers, patterns = raw.get("layers_to_transform"), raw.get("layers_pattern")
    if isinstance(raw.get("target_modules"), str) and (layers is not None or patterns is not None):
        raise _fault(
            "layers_to_transform and layers_pattern need a list of target_modules; "
            "write the layers into the pattern instead"
        )
    if patterns and layers is None:
        raise _fault("layers_pattern needs layers_to_transform too")


def _rank(value: object, field: str, limits: AdapterLimits) -> int:
    if type(value) is not int or value < 1:
        raise _fault(f"{field} must be an integer of at least 1, not {value!r:.60}")
    if value > limits.max_rank:
        raise AdapterTooLarge(
            f"adapter_config.json: {field} is {value!r:.60}; the largest rank is {limits.max_rank}"
        )
    return value


def _number(value: object, field: str) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _fault(f"{field} must be a finite number, not {value!r:.60}")
    return number


def _boolean(raw: Mapping[str, Any], field: str) -> bool:
    value = raw.get(field, False)
    if not isinstance(value, bool):
        raise _fault(f"{field} must be true or false, not {value!r:.60}")
    return value


def _patterns(
    raw: Mapping[str, Any], field: str, convert: Callable[[object, str], Number]
) -> tuple[tuple[NamePattern, Number], ...]:
    """The entries of rank_pattern or alpha_pattern in the order of the file, which decides between them."""
    value = raw.get(field)
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise _fault(f"{field} must map module names to numbers, not {value!r:.60}")
    if len(value) > MAX_PATTERNS:
        raise _fault(f"{field} has {len(value)} entries; the most is {MAX_PATTERNS}")
    patterns = tuple(
        (
            NamePattern(key, f"adapter_config.json: {field}", suffix=True),
            convert(item, f"{field}[{key!r:.60}]"),
        )
        for key, item in value.items()
    )
    if sum(not pattern.plain for pattern, _ in patterns) > MAX_REGULAR_EXPRESSIONS:
        raise _fault(f"{field} has over {MAX_REGULAR_EXPRESSIONS} regular expressions; use module names")
    return patterns


def _names(raw: Mapping[str, Any], field: str) -> list[str]:
    """A list of names; one name alone counts as a list of one."""
    value = raw.get(field) or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _fault(f"{field} must be a list of module names, not {value!r:.60}")
    return names


def _modules(raw: Mapping[str, Any], field: str) -> ModuleNames:
    value = raw.get(field)
    if isinstance(value, str) and value:
        return ModuleNames(pattern=NamePattern(value, f"adapter_config.json: {field}"))
    return ModuleNames(frozenset(_names(raw, field)))


def _target_modules(raw: Mapping[str, Any]) -> ModuleNames:
    value = raw.get("target_modules")
    if not value:
        raise _fault("target_modules is missing; name the modules that were trained")
    if isinstance(value, str) and value.lower() == ALL_LINEAR:
        # PEFT leaves out the output head, which in a causal model is the linear layer at the top level.
        return ModuleNames(pattern=NamePattern(r".*\..*", "target_modules"))
    return _modules(raw, "target_modules")


def _layers(value: object) -> frozenset[int]:
    layers = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise _fault(f"layers_to_transform must be layer numbers, not {value!r:.60}")
    return frozenset(layers)


def _layer_pattern(name: str) -> re.Pattern[str]:
    if not _PLAIN_NAME.fullmatch(name):
        raise _fault(f"layers_pattern {name!r:.60} must be a plain module name such as 'layers'")
    return re.compile(rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\.")


def _suffixes(module: str) -> list[str]:
    """`a.b.c` -> `a.b.c`, `b.c`, `c`."""
    parts = module.split(".")
    return [".".join(parts[index:]) for index in range(len(parts))]
