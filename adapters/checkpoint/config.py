"""`adapter_config.json` as PEFT writes it: what decides about the answers, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.checkpoint.config_fields import (
    ADALORA_APPLIED,
    ADALORA_NO_EFFECT,
    ADALORA_REFUSED,
    APPLIED,
    COMMON_APPLIED,
    COMMON_NO_EFFECT,
    FOLDED_INITS,
    NO_EFFECT,
    ORDINARY_INITS,
    REFUSED,
    TASKS,
)
from adapters.checkpoint.patterns import NamePattern
from adapters.checkpoint.strict_json import parse_object
from adapters.checkpoint.variants.common import (
    Targets,
    boolean,
    check_fields,
    fault,
    is_off,
    name_list,
    number,
    pattern_table,
    positive,
)
from adapters.checkpoint.variants.table import tuner
from adapters.errors import AdapterTooLarge
from adapters.limits import AdapterLimits

_BIAS = ("none", "all")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What the configs of all tuners share; enough for those that are read by `variants/`.

    Attributes:
        raw: all fields as they are in the file.
        decisive: those of them that decide about the answers.
        saved: name endings of the modules that were trained as a whole (`modules_to_save`).
        bias: `none`, `all` or (of the wrapped modules) `only`.
    """

    raw: Mapping[str, Any]
    decisive: Mapping[str, Any]
    peft_type: str
    task: str | None
    wrapped: Targets
    saved: tuple[str, ...]
    bias: str

    def targets(self, module: str) -> bool:
        """Whether PEFT would wrap `module`: what is trained as a whole is not wrapped."""
        return self.wrapped.holds(module) and not any(f".{name}." in f".{module}." for name in self.saved)

    @property
    def variant(self) -> str:
        """A short name: `lora`, `dora`, `pissa`, `vera`, ..."""
        return self.peft_type.lower()


@dataclass(frozen=True, slots=True)
class LoraConfig(AdapterConfig):
    """LoRA's and AdaLoRA's own fields; `r`, `lora_alpha` and the rest are PEFT's names.

    Attributes:
        kept_ranks: of AdaLoRA's pruned modules, by name.
        init: the way of initialising that changed the base (`pissa`, `olora`), or None.
        tokens: trained tokens by the ending of the table's name; "" is the input embedding.
        blocks: of BD-LoRA's block-diagonal factors; 0 where there are none.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: tuple[tuple[NamePattern, int], ...]
    alpha_pattern: tuple[tuple[NamePattern, float], ...]
    kept_ranks: Mapping[str, int]
    init: str | None
    use_dora: bool
    lora_bias: bool
    kasa: bool
    blocks: int
    tokens: Mapping[str, tuple[int, ...]]
    invocation: tuple[int, ...]
    target_parameters: tuple[str, ...]

    def rank_for(self, module: str) -> int:
        """`r`, or the first entry of `rank_pattern` that matches."""
        if self.peft_type == "ADALORA":
            return self.kept_ranks.get(module, self.r)
        return next((rank for pattern, rank in self.rank_pattern if pattern.matches(module)), self.r)

    def alpha_for(self, module: str) -> float:
        """`lora_alpha`, or the first entry of `alpha_pattern` that matches."""
        matching = (alpha for pattern, alpha in self.alpha_pattern if pattern.matches(module))
        return next(matching, self.lora_alpha)

    def scale_for(self, module: str) -> float:
        """What `B A x` is multiplied by: `alpha / r`, or `alpha / sqrt(r)` when rank-stabilised.

        PEFT divides AdaLoRA's by the rank before pruning, and adds 1e-5 to it.
        """
        if self.peft_type == "ADALORA":
            return self.lora_alpha / (self.r + 1e-5)
        rank = self.rank_for(module)
        return self.alpha_for(module) / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def is_plain(self) -> bool:
        """Whether A, B and the scales are all that there is to it."""
        extra = APPLIED - {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
        extra -= {"peft_type", "task_type", "init_lora_weights"}
        extra -= {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
        return (
            self.peft_type == "LORA"
            and self.task in (None, "CAUSAL_LM")
            and self.init is None
            and not any(field in self.decisive for field in extra)
        )

    @property
    def variant(self) -> str:
        flags = {"alora": self.invocation, "kasa": self.kasa, "bdlora": self.blocks, "dora": self.use_dora}
        named = next((name for name, flag in flags.items() if flag), None)
        named = named or next(
            (name for name in ("velora", "monteclora") if self.raw.get(f"{name}_config")), ""
        )
        return named or self.init or self.peft_type.lower()


def parse_config(text: bytes, limits: AdapterLimits) -> AdapterConfig:
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
    peft_type = raw.get("peft_type")
    if not isinstance(peft_type, str):
        raise fault(f'peft_type must name a tuner such as "LORA", not {peft_type!r:.60}')
    task = raw.get("task_type")
    if not isinstance(task, str | None) or task not in TASKS:
        known = ", ".join(str(task) for task in TASKS if task)
        raise fault(f"task_type {task!r:.60} is not supported; those that are: {known}")
    if peft_type == "LORA":
        check_fields(raw, APPLIED, NO_EFFECT, REFUSED)
        return _lora(raw, NO_EFFECT, limits)
    if peft_type == "ADALORA":
        check_fields(raw, ADALORA_APPLIED, ADALORA_NO_EFFECT, ADALORA_REFUSED)
        return _lora(raw, ADALORA_NO_EFFECT, limits)
    reader = tuner(peft_type)
    no_effect = {**COMMON_NO_EFFECT, **reader.NO_EFFECT}
    check_fields(raw, COMMON_APPLIED | set(reader.APPLIED), no_effect, reader.REFUSED)
    return AdapterConfig(**_common(raw, no_effect))


def _common(
    raw: Mapping[str, Any], no_effect: Mapping[str, str], *, optional: bool = False
) -> dict[str, Any]:
    decisive = {
        field: value
        for field, value in raw.items()
        if field not in no_effect and not is_off(value) and (field, value) != ("bias", "none")
    }
    return {
        "raw": raw,
        "decisive": decisive,
        "peft_type": raw["peft_type"],
        "task": raw.get("task_type"),
        "wrapped": Targets.parse(raw, optional=optional),
        "saved": tuple(name_list(raw, "modules_to_save")),
        "bias": _bias(raw),
    }


def _bias(raw: Mapping[str, Any]) -> str:
    value = raw.get("bias") or "none"
    only = f"{raw['peft_type']}_only".lower()
    if isinstance(value, str) and value.lower() in (only, "lora_only"):
        return "only"
    if value not in _BIAS:
        raise fault(f'bias must be "none", "all" or "{only}", not {value!r:.60}; train with one of these')
    return str(value)


def _lora(raw: Mapping[str, Any], no_effect: Mapping[str, str], limits: AdapterLimits) -> LoraConfig:
    adalora = raw["peft_type"] == "ADALORA"

    def rank(value: object, field: str) -> int:
        result = positive(value, field)
        if result > limits.max_rank:
            raise AdapterTooLarge(
                f"adapter_config.json: {field} is {result!r:.60}; the largest rank is {limits.max_rank}"
            )
        return result

    parameters = name_list(raw, "target_parameters")
    config = LoraConfig(
        **_common(raw, no_effect, optional=bool(parameters)),
        r=rank(raw.get("init_r", 12), "init_r") if adalora else rank(raw.get("r", 8), "r"),
        lora_alpha=number(raw.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=boolean(raw, "use_rslora"),
        rank_pattern=() if adalora else pattern_table(raw, "rank_pattern", rank),
        alpha_pattern=pattern_table(raw, "alpha_pattern", number),
        kept_ranks=_kept_ranks(raw) if adalora else {},
        init=None if adalora else _init(raw),
        use_dora=boolean(raw, "use_dora"),
        lora_bias=boolean(raw, "lora_bias"),
        kasa=not is_off(raw.get("kasa_config")),
        blocks=_blocks(raw.get("use_bdlora")),
        tokens=_tokens(raw.get("trainable_token_indices")),
        invocation=_token_ids(raw.get("alora_invocation_tokens") or [], "alora_invocation_tokens"),
        target_parameters=tuple(parameters),
    )
    _check_together(config)
    return config


def _init(raw: Mapping[str, Any]) -> str | None:
    """The initialisation that changed the base, which is to be folded in; None: the base is as it was."""
    init = raw.get("init_lora_weights", True)
    name = init.lower() if isinstance(init, str) else init
    if isinstance(name, bool | str) and name in ORDINARY_INITS:
        return None
    if name not in FOLDED_INITS or name == "pissa" != init:
        raise fault(
            f"init_lora_weights {init!r:.60} changes the base while training, in a way that can't be "
            "repeated from its weights; save with path_initial_model_for_weight_conversion, or train with "
            "init_lora_weights=true"
        )
    if name == "olora" and raw.get("fan_in_fan_out"):
        raise fault(
            "init_lora_weights 'olora' on layers with fan_in_fan_out is not supported; save with "
            "path_initial_model_for_weight_conversion"
        )
    return str(name)


def _blocks(value: object) -> int:
    if is_off(value):
        return 0
    if not isinstance(value, dict):
        raise fault(f"use_bdlora must be an object with nblocks, not {value!r:.60}")
    return positive(value.get("nblocks", 1), "use_bdlora.nblocks")


def _kept_ranks(raw: Mapping[str, Any]) -> dict[str, int]:
    """AdaLoRA's `rank_pattern`: for each `<module>.lora_E`, which of its directions were kept."""
    if not number(raw.get("lora_alpha", 8), "lora_alpha") > 0:
        raise fault("lora_alpha must be positive: PEFT gives AdaLoRA another scale when it is loaded again")
    pattern = raw.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise fault(f"rank_pattern must map module names to lists, not {pattern!r:.60}")
    kept = {}
    for name, flags in pattern.items():
        if not isinstance(flags, list) or not all(isinstance(flag, bool) for flag in flags):
            raise fault(f"rank_pattern[{name!r:.60}] must be a list of true and false, not {flags!r:.60}")
        kept[name.partition(".lora_E")[0]] = sum(flags)
    return kept


def _tokens(value: object) -> dict[str, tuple[int, ...]]:
    field = "trainable_token_indices"
    if is_off(value):
        return {}
    if isinstance(value, dict):
        return {name: _token_ids(ids, f"{field}[{name!r:.60}]") for name, ids in value.items()}
    return {"": _token_ids(value, field)}


def _token_ids(value: object, field: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**31 for item in value):
        raise fault(f"{field} must be a list of token ids, not {value!r:.60}")
    return tuple(value)


def _check_together(config: LoraConfig) -> None:
    """What PEFT itself refuses, and what can't be said to act from a token on."""
    flags = {
        "use_dora": config.use_dora,
        "use_bdlora": config.blocks,
        "kasa_config": config.kasa,
        "alora_invocation_tokens": config.invocation,
        "velora_config": config.raw.get("velora_config"),
        "monteclora_config": config.raw.get("monteclora_config"),
    }
    on = [field for field, flag in flags.items() if flag]
    if len(on) > 1:
        raise fault(f"{' and '.join(on)} don't go together, in PEFT neither; train with one of them")
    if config.lora_bias and (config.use_dora or config.init):
        raise fault("lora_bias doesn't go with DoRA, PiSSA and OLoRA, in PEFT neither; train without it")
    if config.target_parameters and (on or config.lora_bias or config.init):
        what = on[0] if on else "lora_bias" if config.lora_bias else "init_lora_weights"
        raise fault(f"target_parameters doesn't go with {what}, in PEFT neither; train without one of them")
    always: dict[str, object] = {"modules_to_save": config.saved, "trainable_token_indices": config.tokens}
    always |= {"bias": config.bias != "none"}
    if config.invocation and (also := [field for field, flag in always.items() if flag]):
        raise fault(
            f"{also[0]} acts on every token, alora_invocation_tokens from one on; train without one of them"
        )
