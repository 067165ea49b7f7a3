"""What an adapter is checked against: the shapes and the identity of one frozen base model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

BaseKind = Literal["decoder", "encoder", "encoder-decoder"]


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """One linear map of the base that an adapter may add to.

    `y = W x` with `W` of shape `(out_features, in_features)`, whatever way round the module stores it
    (`Conv1D` of GPT-2 stores the transpose).
    """

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """One fused parameter of all experts of a layer, or the weight of their router.

    Each of the `experts` maps is `(out_features, in_features)`; the parameter is `(experts, out_features,
    in_features)`, or `(experts, in_features, out_features)` if `transposed`. A router is one expert, without
    that dimension.
    """

    name: str
    experts: int
    in_features: int
    out_features: int
    transposed: bool = False
    router: bool = False


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The head of one task on this base, by parameter names such as `classifier.out_proj.weight`.

    Attributes:
        shapes: of all its parameters; the first dimension of those in `by_label` is the number of labels,
            which each adapter has its own of.
        given: the shapes of those that the base's checkpoint has.
        modules: what PEFT's `modules_to_save` calls its parts.
    """

    shapes: Mapping[str, tuple[int, ...]]
    by_label: frozenset[str]
    given: Mapping[str, tuple[int, ...]]
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """The frozen base as adapters see it.

    Attributes:
        name: the name that clients use for the base in `model`.
        digest: hex SHA-256 over config and weights; part of every cache key.
        linears: every linear map that LoRA may target, by qualified module name such as
            `model.layers.0.self_attn.q_proj`.
        other_modules: every other qualified module name, so that an error can tell "not a linear
            layer" from "no such module".
        parameters: the shape of every parameter by qualified name, in the order of the model's definition;
            tied ones under each of their names.
        kind: `decoder` generates, `encoder` classifies and embeds, `encoder-decoder` generates from a source.
        embeddings: every table that is called with token ids, `(vocabulary, dim)`, by qualified module name.
        experts: the parameters of mixtures of experts that adapters may add to, by qualified name such as
            `model.layers.0.mlp.experts.gate_up_proj`, in the order in which their modules define them.
        replaceable: the modules whose own parameters an adapter may bring instead, by qualified name; their
            shapes are in `parameters`.
        source: the path or hub id that the base was loaded from.
        tied_head: whether the output head shares its weight with the input embedding.
        task: PEFT's name (`SEQ_CLS`, `TOKEN_CLS`) of what the checkpoint itself has a trained head for, or
            None.
        labels: names of that head's outputs.
        heads: by PEFT's name of a task, what a head for it is made of; empty where any linear layer may be
            one.
        quantization: how its linear layers are quantised (`adapters/quantized.py`); None if they are not.
    """

    name: str
    digest: str
    linears: Mapping[str, LinearSpec]
    other_modules: frozenset[str] = field(default_factory=frozenset)
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    embeddings: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    experts: Mapping[str, ExpertsSpec] = field(default_factory=dict)
    replaceable: frozenset[str] = field(default_factory=frozenset)
    kind: BaseKind = "decoder"
    source: str = ""
    tied_head: bool = False
    task: str | None = None
    labels: tuple[str, ...] = ()
    heads: Mapping[str, HeadSpec] = field(default_factory=dict)
    quantization: str | None = None

    @property
    def serving_digest(self) -> str:
        """Identity of what answers: of the checkpoint, and of how it is quantised.

        Adapters belong to the checkpoint, `digest`; KV and what is computed from its weights to this.
        """
        if self.quantization is None:
            return self.digest
        return hashlib.sha256(f"{self.digest} {self.quantization}".encode()).hexdigest()
