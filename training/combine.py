"""Several LoRA adapters become one, by the methods of PEFT's `add_weighted_adapter`, from their files alone.

The arithmetic is PEFT's own (`peft.utils.merge_utils`). `cat` and `svd` are sums of the deltas, `svd` cut to
a rank; the others work on A and B by themselves, as PEFT does. With `_svd` after its name a method works on
the whole deltas `scale * B A`, and its result is cut to a rank.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.config import LoraConfig, parse_config
from adapters.checkpoint.keys import PREFIX, Names, sort_names
from adapters.checkpoint.safetensors_file import read_header
from adapters.errors import InvalidAdapter
from adapters.limits import AdapterLimits

Task = Callable[[list[Tensor], Tensor], Tensor]
PLAIN = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS = (*PLAIN, "cat", "svd", *(f"{method}_svd" for method in PLAIN if method != "linear"))
SIGNS = ("total", "frequency")
_LIMITS = AdapterLimits(max_rank=2**20, max_file_bytes=2**40)
_BESIDE = (
    *("modules_to_save", "use_dora", "lora_bias", "bias", "trainable_token_indices", "target_parameters"),
    *("alora_invocation_tokens", "use_bdlora", "kasa_config"),
)
_KEYS = {"A": "lora_A.weight", "B": "lora_B.weight"}
_EMBEDDING_KEYS = {"A": "lora_embedding_A", "B": "lora_embedding_B"}


class CombineError(ValueError):
    """Adapters that can't be combined so, or a method that lacks something; one line."""


@dataclass(frozen=True, slots=True)
class How:
    """By what method.

    Attributes:
        density: share of the values that pruning keeps, over 0 to 1; for all methods but linear, cat and svd.
        rank: of the result, for `svd` and `..._svd`; None: the largest rank of the inputs.
        seed: of what is dropped by chance (`dare_...`).
        sign: how `ties` elects a sign: by the sum of the values or by their number.
    """

    method: str = "linear"
    density: float | None = None
    rank: int | None = None
    seed: int = 0
    sign: str = "total"

    def __post_init__(self) -> None:
        prunes = self.method not in ("linear", "cat", "svd")
        if self.method not in METHODS:
            raise CombineError(f"--method {self.method}: no such method; there are {', '.join(METHODS)}")
        if self.sign not in SIGNS:
            raise CombineError(f"--majority-sign {self.sign}: must be total or frequency")
        if prunes != (self.density is not None):
            raise CombineError(f"--method {self.method} {'needs' if prunes else 'takes no'} --density")
        if self.density is not None and not 0 < self.density <= 1:
            raise CombineError(f"--density {self.density}: must be over 0, to 1")
        if self.rank is not None and (self.rank < 1 or not self.method.endswith("svd")):
            raise CombineError(f"--rank {self.rank}: must be at least 1, and only svd and ..._svd take one")


@dataclass(frozen=True, slots=True)
class Source:
    """One adapter: its config, its tensors in float32 by module and part, and its weight."""

    folder: Path
    weight: float
    config: LoraConfig
    names: Names
    tensors: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        """The largest that its config names."""
        return max(self.config.r, *(rank for _, rank in self.config.rank_pattern), 0)

    def factors(self, module: str) -> tuple[Tensor, Tensor] | None:
        """`A` and `B` of a module as PEFT stores them; None: it has none there."""
        parts = self.names.modules.get(module)
        if parts is None:
            return None
        prefix = "embedding_" if "embedding_A" in parts else ""
        return self.tensors[parts[f"{prefix}A"]], self.tensors[parts[f"{prefix}B"]]


def combine(inputs: Sequence[tuple[Path, float]], output: Path, how: How) -> None:
    """Write the combination of PEFT folders, each with a weight, to `output` as a PEFT folder of scale 1.

    Raises:
        CombineError, AdapterError: an input can't be used, or not with the others; the message names it.
        FileExistsError: `output` holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is not empty; choose another folder")
    sources = [read_source(folder, weight) for folder, weight in inputs]
    method = how.method if len(sources) > 1 else "linear"  # as PEFT: one adapter can only be weighted
    rank = _rank(sources, method, how.rank)
    tensors: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        for module in sorted({module for source in sources for module in source.names.modules}):
            tensors |= _module(sources, module, method, rank, how)
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / WEIGHTS_FILE, {"format": "pt"})
    (output / CONFIG_FILE).write_text(json.dumps(_config(sources, rank), indent=2, sort_keys=True) + "\n")


def read_source(folder: Path, weight: float) -> Source:
    """One adapter of A, B and scales alone.

    Raises:
        CombineError, AdapterError: it is another kind; the message names what it has beside them.
    """
    if not math.isfinite(weight):
        raise CombineError(f"{folder}: its weight must be a finite number, not {weight}")
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise InvalidAdapter(f"{folder} holds no {file}")
    config = parse_config((folder / CONFIG_FILE).read_bytes(), _LIMITS)
    if not isinstance(config, LoraConfig) or config.peft_type != "LORA":
        raise CombineError(f"{folder}: only LoRA can be combined, not {config.peft_type}")
    beside = next((name for name in _BESIDE if name in config.decisive), None)
    if beside is not None:
        raise CombineError(f"{folder}: only A and B can be combined, and this adapter has {beside}")
    if config.init is not None:
        raise CombineError(
            f"{folder}: init_lora_weights={config.init!r} changed the base while training; "
            "convert it first (path_initial_model_for_weight_conversion of PEFT's save_pretrained)"
        )
    names = sort_names(read_header(folder / WEIGHTS_FILE, _LIMITS), config)
    tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    return Source(folder, weight, config, names, tensors)


def _rank(sources: Sequence[Source], method: str, asked: int | None) -> int:
    ranks = {source.rank for source in sources}
    if method == "cat":
        return sum(source.rank for source in sources)
    if method.endswith("svd"):
        return asked or max(ranks)
    if len(ranks) > 1:
        raise CombineError(
            f"--method {method} needs adapters of one rank, not {sorted(ranks)}; use cat, svd or ..._svd"
        )
    return max(ranks)


def _module(sources: Sequence[Source], module: str, method: str, rank: int, how: How) -> dict[str, Tensor]:
    """The combined factors under the names of a PEFT file."""
    found = [(source, pair) for source in sources if (pair := source.factors(module)) is not None]
    embedding = "embedding_A" in found[0][0].names.modules[module]
    shapes = {(a.shape[1], b.shape[0]) for _, (a, b) in found}
    if len(shapes) > 1:
        raise CombineError(f"the adapters were trained on other bases: {module} has sizes {sorted(shapes)}")
    weights = [source.weight * source.config.scale_for(module) for source, _ in found]
    factors = [pair for _, pair in found]
    if method == "cat":
        a = torch.cat([a * weight for (a, _), weight in zip(factors, weights, strict=True)])
        b = torch.cat([b for _, b in factors], 1)
    elif method.endswith("svd"):
        # PEFT draws by chance in the shape that the base stores.
        turned = embedding or bool(found[0][0].config.raw.get("fan_in_fan_out"))
        a, b = _cut(_whole(found, module, turned, method, how), rank)
    else:
        if len({a.shape[0] for a, _ in factors}) > 1:
            raise CombineError(f"--method {method} needs one rank in {module}; use cat, svd or ..._svd")
        # The weight goes in halves to A and B, its sign to A.
        halves = [math.copysign(math.sqrt(abs(weight)), weight) for weight in weights]
        a = _task(method, how)([a for a, _ in factors], torch.tensor(halves))
        b = _task(method, how)([b for _, b in factors], torch.tensor(halves).abs())
    keys = _EMBEDDING_KEYS if embedding else _KEYS
    a, b = _padded(a, (rank, a.shape[1])), _padded(b, (b.shape[0], rank))
    return {f"{PREFIX}{module}.{keys['A']}": a, f"{PREFIX}{module}.{keys['B']}": b}


def _whole(
    found: Sequence[tuple[Source, tuple[Tensor, Tensor]]], module: str, turned: bool, method: str, how: How
) -> Tensor:
    """The combined delta, `(out_features, in_features)`."""
    deltas = [source.config.scale_for(module) * (b @ a) for source, (a, b) in found]
    weights = torch.tensor([source.weight for source, _ in found])
    combined = _task(method.removesuffix("_svd"), how)([d.T if turned else d for d in deltas], weights)
    return combined.T if turned else combined


def _task(method: str, how: How) -> Task:
    """PEFT's function for a list of tensors and their weights."""
    if method in ("linear", "svd"):
        return cast(Task, merge_utils.task_arithmetic)
    options: dict[str, Any] = {"density": how.density}
    if method.endswith("ties"):
        options["majority_sign_method"] = how.sign
    function = getattr(merge_utils, method)

    def run(tensors: list[Tensor], weights: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # with a density of 1 nothing is pruned, as was asked
            result: Tensor = function(tensors, weights, **options)
        return result

    return run


def _cut(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a rank: singular values in `B`, as PEFT has it."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return vh[:rank], u[:, :rank] * s[:rank]


def _padded(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    """With zeros, to the rank that the config names for all modules."""
    result = tensor.new_zeros(shape)
    result[: tensor.shape[0], : tensor.shape[1]] = tensor
    return result


def _config(sources: Sequence[Source], rank: int) -> dict[str, Any]:
    """The first config, with the rank and the modules of the result, and a scale of 1."""
    changed = {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "target_modules": _targets(sources),
    }
    return {**sources[0].config.raw, **changed}


def _targets(sources: Sequence[Source]) -> list[str]:
    """The names that the configs have, or those of the modules where these would hold others too."""
    raws = [source.config.raw for source in sources]
    narrowed = any(raw.get("layers_to_transform") or raw.get("exclude_modules") for raw in raws)
    if narrowed or any(not isinstance(raw["target_modules"], list) for raw in raws):
        return sorted({module for source in sources for module in source.names.modules})
    return sorted({name for raw in raws for name in raw["target_modules"]})
