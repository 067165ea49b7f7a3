"""What is trained as it is, not as a difference: modules, heads, biases, rows of embedding tables.

Here it is told what each tensor stands for and whether it fits the base; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from adapters.base import BaseSpec
from adapters.batch.heads import check_head
from adapters.checkpoint.config import AdapterConfig, LoraConfig
from adapters.checkpoint.config_fields import HEAD_TASKS
from adapters.checkpoint.keys import Names
from adapters.checkpoint.variants.common import text
from adapters.errors import InvalidAdapter

Shape = tuple[int, ...]
ShapeOf = Callable[[str], Shape]
_HEADS = frozenset({"score", "classifier", "classification_head"})


def head_of(names: Names, config: AdapterConfig, base: BaseSpec, shape_of: ShapeOf) -> dict[str, str]:
    """The tensors of the task's head by parameter, as the checkpoint names it.

    Raises:
        InvalidAdapter: the task needs a head and has none, or needs none and has one, or it does not fit.
    """
    head: dict[str, str] = {}
    for module, parts in names.saved.items():
        known = module in base.linears or module in base.other_modules
        if config.task in HEAD_TASKS and (not known or module in _HEADS):
            head |= {f"{module}.{parameter}": key for parameter, key in parts.items()}
        elif not known:
            raise InvalidAdapter(
                f"tensor {next(iter(parts.values()))!r}: {base.name} has no module {module}; a trained head "
                f"needs task_type {' or '.join(HEAD_TASKS)}"
            )
    if not head and config.task in HEAD_TASKS:
        raise InvalidAdapter(
            f"adapter_config.json: task_type {config.task!r} needs a trained head, but the weights hold "
            "none; name it in modules_to_save (score or classifier) when training, and save without "
            "path_initial_model_for_weight_conversion, which leaves it out"
        )
    check_head(base, config.task, {name: shape_of(key) for name, key in head.items()})
    return head


def replaced_modules(
    names: Names, head: Mapping[str, str], base: BaseSpec, shape_of: ShapeOf, config: AdapterConfig
) -> dict[str, dict[str, str]]:
    """The base's own modules that were trained as a whole, each with its parameters' tensors.

    Raises:
        InvalidAdapter: a module that can't be replaced, or whose tensors are not all there or do not fit.
    """
    own: dict[str, dict[str, str]] = {}
    for saved, parts in names.saved.items():
        for parameter, key in parts.items():
            if f"{saved}.{parameter}" not in head:
                module, _, name = f"{saved}.{parameter}".rpartition(".")
                own.setdefault(module, {})[name] = key
    for module, parts in own.items():
        shapes = own_parameters(module, base)
        for name, key in parts.items():
            if module not in base.replaceable or name not in shapes:
                raise InvalidAdapter(
                    f"tensor {key!r}: {module} of {base.name} can't be replaced row by row; train it with "
                    "LoRA, not in modules_to_save"
                )
            _check_shape(key, shape_of(key), shapes[name], base)
    for parameter in base.parameters if config.saved else ():
        module, _, name = parameter.rpartition(".")
        if _is_saved(module, config) and name not in own.get(module, {}) and parameter not in head:
            raise InvalidAdapter(
                f"adapter_config.json: modules_to_save names {parameter}, but the weights hold no tensor for "
                "it; the file is incomplete, or made for another base"
            )
    return own


def _is_saved(module: str, config: AdapterConfig) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:length]).endswith(config.saved) for length in range(1, len(parts) + 1))


def check_biases(
    names: Names, wrapped: Mapping[str, object], config: AdapterConfig, base: BaseSpec, shape_of: ShapeOf
) -> None:
    """Each trained bias takes the place of one of the base, and none that was trained is missing.

    Raises:
        InvalidAdapter: naming the first that does not.
    """
    for module, key in names.biases.items():
        own = base.parameters.get(f"{module}.bias")
        if own is None:
            raise InvalidAdapter(f"tensor {key!r}: {base.name} has no bias at {module}")
        _check_shape(key, shape_of(key), own, base)
        if module not in base.linears and not _can_change_bias(module, base):
            raise InvalidAdapter(
                f'tensor {key!r}: {module} is neither a linear layer nor a norm; train with bias="lora_only"'
            )
        if config.bias == "only" and module not in wrapped:
            raise InvalidAdapter(
                f"tensor {key!r}: adapter_config.json has no {module} among its target_modules, and bias "
                "covers these only"
            )
    covered = wrapped if config.bias == "only" else base.linears if config.bias == "all" else ()
    for module in covered:
        if f"{module}.bias" in base.parameters and module not in (*names.biases, *names.saved):
            raise InvalidAdapter(
                f"adapter_config.json: bias={config.raw['bias']!r} covers {module}, but the weights hold no "
                "bias for it; the file is incomplete, or made for another base"
            )


def token_ids(
    names: Names, config: LoraConfig, base: BaseSpec, shape_of: ShapeOf
) -> dict[str, tuple[int, ...]]:
    """The trained tokens of each embedding table or output head that the file has rows for.

    Raises:
        InvalidAdapter: rows that do not fit, or trained tokens without rows.
    """
    found = {}
    for module, key in names.tokens.items():
        entry = next((entry for entry in config.tokens if module.endswith(entry)), None)
        table = base.embeddings.get(module) or _head_table(module, base)
        if entry is None or table is None or (entry == "" and module not in base.embeddings):
            raise InvalidAdapter(
                f"tensor {key!r}: trainable_token_indices of adapter_config.json does not name {module}, or "
                f"it is no embedding of {base.name}"
            )
        ids = config.tokens[entry]
        if len(set(ids)) != len(ids) or any(token >= table[0] for token in ids):
            raise InvalidAdapter(
                "adapter_config.json: trainable_token_indices has a token twice, or one that is not below "
                f"{table[0]}, the size of {module}; add tokens to the base first"
            )
        _check_shape(key, shape_of(key), (len(ids), table[1]), base)
        found[module] = ids
    if base.tied_head and len(set(found.values())) > 1:
        raise InvalidAdapter(
            "adapter_config.json: trainable_token_indices differ between tables that share their weight; "
            "train with the same ones"
        )
    for entry, ids in config.tokens.items():
        named = any(module.endswith(entry) for module in found)
        if not named and not (base.tied_head and ids in found.values()):
            raise InvalidAdapter(
                f"adapter_config.json: trainable_token_indices names {entry or 'the embedding'!r}, but the "
                "weights hold no rows for it; the file is incomplete, or made for another base"
            )
    return found


def check_copies(names: Names, base: BaseSpec, shape_of: ShapeOf) -> None:
    """Full weights outside of `modules_to_save` may be copies of the base's embedding and output head.

    PEFT adds them when it finds these among the targets, or the vocabulary resized. Nothing else may be.

    Raises:
        InvalidAdapter: a tensor that is no such copy.
    """
    for parameter, key in names.copies.items():
        module = parameter.removesuffix(".weight")
        own = base.parameters.get(parameter)
        if own is None or not (module in base.embeddings or _head_table(module, base)):
            raise InvalidAdapter(
                f"tensor {key!r}: fully trained modules are named in modules_to_save of adapter_config.json, "
                "and this one is not"
            )
        if shape_of(key) != own:
            raise InvalidAdapter(
                f"tensor {key!r} has shape {text(shape_of(key))}; {base.name} has {text(own)}: the "
                "vocabulary was resized for training; resize the base in the same way and serve that"
            )


def own_parameters(module: str, base: BaseSpec) -> dict[str, Shape]:
    """The shapes of the parameters that `module` has itself, not in parts of it."""
    prefix = f"{module}."
    return {
        name.removeprefix(prefix): shape
        for name, shape in base.parameters.items()
        if name.startswith(prefix) and "." not in name[len(prefix) :]
    }


def _can_change_bias(module: str, base: BaseSpec) -> bool:
    """Whether `module` can be replaced by one with its own weight and another bias."""
    return module in base.replaceable and own_parameters(module, base).keys() == {"weight", "bias"}


def _head_table(module: str, base: BaseSpec) -> tuple[int, int] | None:
    """The shape of the output head, which in a causal model is the linear layer at the top level."""
    linear = base.linears.get(module)
    return None if linear is None or "." in module else (linear.out_features, linear.in_features)


def _check_shape(key: str, shape: Shape, wanted: Shape, base: BaseSpec) -> None:
    if shape != wanted:
        raise InvalidAdapter(f"tensor {key!r} has shape {text(shape)}; {base.name} needs {text(wanted)}")
