"""The tensor names of a checkpoint, and what each belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from adapters.base import BaseSpec
from adapters.checkpoint.config import AdapterConfig, LoraConfig
from adapters.errors import InvalidAdapter

PREFIX = "base_model.model."
_SHARED_PREFIX = "base_model."
_TOKENS = ".token_adapter.trainable_tokens_delta"

# `lora_A.weight` and the like, with or without one adapter name in between.
_OWN = (
    re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.(?P<adapter>[^.]+))?\.weight", re.DOTALL),
    re.compile(r"(?P<module>.+)\.lora_B(\.(?P<adapter>[^.]+))?\.(?P<part>bias)", re.DOTALL),
    re.compile(
        r"(?P<module>.+)\.lora_(?P<part>magnitude_vector)(\.(?P<adapter>(?!weight$)[^.]+))?(\.weight)?",
        re.DOTALL,
    ),
    re.compile(
        r"(?P<module>.+)\.lora_(?P<part>embedding_A|embedding_B|diag)(\.(?P<adapter>[^.]+))?", re.DOTALL
    ),
)
_ADALORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[ABE])(\.(?P<adapter>[^.]+))?", re.DOTALL)
# Used by PEFT while training only, and told by the config whether they may be there.
_TRAINING = {
    "velora_config": re.compile(r".+\.lora_velora_embed(\..+)?", re.DOTALL),
    "monteclora_config": re.compile(r".+\.lora_monteclora_sampler\..+", re.DOTALL),
}
# What a part needs in the config, said if that is off.
_NEEDS = {
    "magnitude_vector": ("use_dora", "a magnitude of DoRA"),
    "bias": ("lora_bias", "a bias on lora_B"),
    "diag": ("kasa_config", "singular values of KaSA"),
}


@dataclass(frozen=True, slots=True)
class Names:
    """All names of a file, by what they belong to. Modules are sorted, and named as in the base.

    Attributes:
        modules: for each wrapped module its tensors by part: A, B, E, bias, magnitude_vector, diag,
            embedding_A, embedding_B.
        saved: for each module that was trained as a whole, its parameters.
        biases: trained biases by module.
        tokens: rows of trained tokens, by the table's module.
        copies: copies of the base's own weights, by parameter.
        tuner: tensors of a tuner that is read in `variants/`, by name without prefix.
        unused: tensors that training needed and nothing else does.
    """

    modules: Mapping[str, Mapping[str, str]]
    saved: Mapping[str, Mapping[str, str]]
    biases: Mapping[str, str]
    tokens: Mapping[str, str]
    copies: Mapping[str, str]
    tuner: Mapping[str, str]
    unused: frozenset[str] = frozenset()

    def used(self) -> list[str]:
        """The names in the file of all tensors that decide about the answers, in a fixed order."""
        groups = [*self.modules.values(), *self.saved.values(), self.biases, self.tokens, self.tuner]
        return [name for group in groups for _, name in sorted(group.items())]


@dataclass(slots=True)
class _Sorting:
    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    saved: dict[str, dict[str, str]] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    tuner: dict[str, str] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)
    adapters: set[str | None] = field(default_factory=set)


def sort_names(keys: Iterable[str], config: AdapterConfig) -> Names:
    """Every name of a file with its place.

    Names are `base_model.model.<module>.lora_A.weight`, or without that prefix if no name in the file has it,
    or with one adapter name between `lora_A` and `weight`.

    Raises:
        InvalidAdapter: a name that has no place with this config, two names for one place, or a factor
            without the other.
    """
    names = list(keys)
    if not names:
        raise InvalidAdapter("the weights hold no tensors")
    prefixed = any(name.startswith(_SHARED_PREFIX) for name in names)
    sorting = _Sorting()
    for name in names:
        prefix = next((p for p in (PREFIX, _SHARED_PREFIX) if name.startswith(p)), "")
        if prefixed and (not prefix or (prefix == _SHARED_PREFIX and isinstance(config, LoraConfig))):
            raise _unknown(name, config)
        _place(name, name.removeprefix(prefix), config, sorting)
    _check_pairs(sorting)
    modules = {module: sorting.modules[module] for module in sorted(sorting.modules)}
    return Names(
        modules,
        dict(sorted(sorting.saved.items())),
        dict(sorted(sorting.biases.items())),
        dict(sorted(sorting.tokens.items())),
        sorting.copies,
        dict(sorted(sorting.tuner.items())),
        frozenset(sorting.unused),
    )


def _place(key: str, name: str, config: AdapterConfig, to: _Sorting) -> None:
    if saved := _saved_module(name, config):
        module, parameter = saved
        if re.fullmatch(r"(original_module|modules_to_save)\.bias", parameter):
            to.unused.add(key)  # bias="all" writes them beside the module's own
        else:
            _put(to.saved.setdefault(module, {}), parameter, key)
    elif isinstance(config, LoraConfig) and (match := _own(name, config)):
        _check_needs(key, match["part"], config)
        to.adapters.add(match["adapter"])
        if len(to.adapters) > 1:
            raise InvalidAdapter(f"tensor {key!r} belongs to another adapter than others in the file")
        _put(to.modules.setdefault(match["module"], {}), match["part"], key)
    elif training := next((f for f, pattern in _TRAINING.items() if pattern.fullmatch(name)), None):
        if not config.raw.get(training):
            raise InvalidAdapter(f"tensor {key!r}: adapter_config.json has no {training}; add it or the file")
        to.unused.add(key)
    elif name.endswith(_TOKENS) and isinstance(config, LoraConfig):
        if not config.tokens:
            raise InvalidAdapter(
                f"tensor {key!r}: trained tokens, but adapter_config.json has no trainable_token_indices"
            )
        _put(to.tokens, name.removesuffix(_TOKENS), key)
    elif name.endswith(".bias") and (config.bias != "none" or isinstance(config, LoraConfig)):
        if config.bias == "none":
            raise InvalidAdapter(f'tensor {key!r}: a trained bias, but adapter_config.json has bias="none"')
        _put(to.biases, name.removesuffix(".bias").removesuffix(".base_layer"), key)
    elif not isinstance(config, LoraConfig):
        _put(to.tuner, name, key)
    elif name.endswith(".weight") and "lora_" not in name:
        _put(to.copies, name.removesuffix(".weight").removesuffix(".base_layer") + ".weight", key)
    else:
        raise _unknown(key, config)


def _put(place: dict[str, str], part: str, key: str) -> None:
    if part in place:
        raise InvalidAdapter(f"tensors {place[part]!r} and {key!r} are the same parameter; remove one")
    place[part] = key


def _own(name: str, config: LoraConfig) -> re.Match[str] | None:
    patterns = (_ADALORA,) if config.peft_type == "ADALORA" else _OWN
    return next((match for pattern in patterns if (match := pattern.fullmatch(name))), None)


def _check_needs(key: str, part: str, config: LoraConfig) -> None:
    need, what = _NEEDS.get(part, ("", ""))
    if need and need not in config.decisive:
        raise InvalidAdapter(f"tensor {key!r}: {what}, but adapter_config.json has {need} off")


def _saved_module(name: str, config: AdapterConfig) -> tuple[str, str] | None:
    """The module that was trained as a whole, and the rest of `name`. As in PEFT, its name's end decides."""
    if not config.saved:
        return None
    parts = name.split(".")
    for length in range(1, len(parts)):
        module = ".".join(parts[:length])
        if module.endswith(config.saved):
            return module, ".".join(parts[length:])
    return None


def _check_pairs(sorting: _Sorting) -> None:
    others = {"A": "B", "B": "A", "embedding_A": "embedding_B", "embedding_B": "embedding_A"}
    for parts in sorting.modules.values():
        for part, name in parts.items():
            other = others.get(part, "A")
            if other not in parts and not (part == "magnitude_vector" and "embedding_A" in parts):
                raise InvalidAdapter(f"tensor {name!r} (lora_{part}) has no lora_{other} beside it")


def _unknown(key: str, config: AdapterConfig) -> InvalidAdapter:
    return InvalidAdapter(
        f"unknown tensor {key!r}; adapter_config.json tells of nothing of {config.peft_type} with this name"
    )


@dataclass(frozen=True, slots=True)
class View:
    """The base with its modules named as an adapter names them, and how to get back."""

    base: BaseSpec
    remove: str = ""
    add: str = ""

    def own(self, name: str) -> str:
        """The base's own name for one of the view."""
        return self.add + name.removeprefix(self.remove)


def view_for(base: BaseSpec, names: Names) -> View:
    """The base as seen by an adapter that was made on the same model in another class.

    `LlamaModel` has `layers.0` where `LlamaForCausalLM` has `model.layers.0`. Names fit as they are, or all
    of them fit without the base's first component, or with one component more.
    """
    dotted = [
        name
        for name in (*names.modules, *names.biases, *names.tokens, *names.tuner)
        if "." in name and name not in names.saved
    ]
    modules = {*base.linears, *base.other_modules}
    if not dotted or any(_fits(name, modules) for name in dotted):
        return View(base)
    firsts = sorted({name.partition(".")[0] + "." for name in base.linears if "." in name})
    views = [View(_renamed(base, remove=first), add=first) for first in firsts]
    first = dotted[0].partition(".")[0] + "."
    views.append(View(_renamed(base, add=first), remove=first))
    for view in views:
        modules = {*view.base.linears, *view.base.other_modules}
        if all(_fits(name, modules) for name in dotted):
            return view
    return View(base)


def _fits(name: str, modules: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in modules for length in range(2, len(parts) + 1))


def _renamed(base: BaseSpec, *, remove: str = "", add: str = "") -> BaseSpec:
    def view(name: str) -> str:
        return add + name.removeprefix(remove)

    return replace(
        base,
        linears={view(name): each for name, each in base.linears.items() if name.startswith(remove)},
        other_modules=frozenset(view(name) for name in base.other_modules if name.startswith(remove)),
        parameters={view(name): each for name, each in base.parameters.items() if name.startswith(remove)},
        embeddings={view(name): each for name, each in base.embeddings.items() if name.startswith(remove)},
        experts={view(name): each for name, each in base.experts.items() if name.startswith(remove)},
        replaceable=frozenset(view(name) for name in base.replaceable if name.startswith(remove)),
    )
