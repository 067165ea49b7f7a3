"""The tensor names of a LoRA checkpoint, and the module that each belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapters.errors import InvalidAdapter

PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(\.(?P<adapter>[^.]+))?\.weight", re.DOTALL)

# The first that fits decides: what else PEFT can save, told by how the name ends.
_OTHERS = (
    (".lora_embedding_A", "LoRA on an embedding is not supported yet"),
    (".lora_embedding_B", "LoRA on an embedding is not supported yet"),
    (".lora_magnitude_vector", "DoRA is not supported yet"),
    (".lora_B.bias", "a bias on lora_B is not supported yet"),
    (
        ".base_layer.weight",
        "a copy of the base's own weight, which is not used; save again with save_embedding_layers=False",
    ),
    (".bias", "trained biases are not supported yet"),
    (".trainable_tokens_delta", "trained tokens are not supported yet"),
    (".weight", "fully trained modules are not supported yet"),
)


@dataclass(frozen=True, slots=True)
class FactorKeys:
    """The names in the file of one module's two tensors."""

    a: str
    b: str


def pair_factors(keys: Iterable[str]) -> Mapping[str, FactorKeys]:
    """Each wrapped module with its two tensors, sorted by module name.

    Names are `base_model.model.<module>.lora_A.weight`, or without that prefix if no name in the file has
    it, or with one adapter name between `lora_A` and `weight`.

    Raises:
        InvalidAdapter: a name that is none of these, a factor given twice, or one without the other.
    """
    names = list(keys)
    if not names:
        raise InvalidAdapter("the weights hold no tensors")
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    found: dict[str, dict[str, str]] = {}
    adapter_names: set[str | None] = set()
    for name in names:
        match = _FACTOR.fullmatch(name.removeprefix(prefix))
        if match is None or not name.startswith(prefix):
            raise _refuse(name)
        adapter_names.add(match["adapter"])
        if len(adapter_names) > 1:
            raise InvalidAdapter(f"tensor {name!r} belongs to another adapter than others in the file")
        found.setdefault(match["module"], {})[match["part"]] = name
    for parts in found.values():
        if len(parts) == 1:
            (part, name), other = next(iter(parts.items())), "AB"["A" in parts]
            raise InvalidAdapter(f"tensor {name!r} (lora_{part}) has no lora_{other} beside it")
    return {module: FactorKeys(found[module]["A"], found[module]["B"]) for module in sorted(found)}


def _refuse(name: str) -> InvalidAdapter:
    for ending, reason in _OTHERS:
        if name.endswith(ending) or f"{ending}." in name:
            return InvalidAdapter(f"tensor {name!r}: {reason}")
    return InvalidAdapter(f"unknown tensor {name!r}; a LoRA file holds lora_A and lora_B weights only")
