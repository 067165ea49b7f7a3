"""What an adapter is in memory: for each module of the base that it touches, one record.

    y = magnitude * (W x + b) + scale * B (A x) + shift

`W x + b` is the frozen base's own output. LoRA, Hu et al. 2021 (arXiv 2106.09685), section 4.1, has A, B and
`scale` (`alpha / r`, or `alpha / sqrt(r)` when rank-stabilised, arXiv 2312.03732); all other variants become
the same record when they are read. Embeddings, fused experts and modules that an adapter replaces as a whole
have records of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ModuleDelta:
    """What an adapter does to one linear map. All tensors are contiguous.

    Attributes:
        a, b: `(rank, in_features)` and `(out_features, rank)`; the rank is 0 where only the other terms act.
            `b` is what is added to the output as it is: DoRA's magnitude is in it already.
        scale: what `B A x` is multiplied by.
        magnitude: `(out_features,)` float32, what the base's output is multiplied by; None is 1.
        shift: `(out_features,)` float32, what is added at the end; None is 0.
        input_scale: `(in_features,)` float32, what the base's input is multiplied by (IA3); None is 1.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    shift: Tensor | None = None
    input_scale: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All that there are."""
        yield self.a
        yield self.b
        for tensor in (self.magnitude, self.shift, self.input_scale):
            if tensor is not None:
                yield tensor

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether the form that is computed with, `A` and `scale * B`, is finite in `dtype`."""
        terms = (self.magnitude, self.shift, self.input_scale)
        return (
            all_finite(self.a.to(dtype))
            and all_finite((self.b.float() * self.scale).to(dtype))
            and all(all_finite(term.to(dtype)) for term in terms if term is not None)
        )


@dataclass(frozen=True, slots=True)
class EmbeddingDelta:
    """What an adapter does to one embedding table, `(vocabulary, dim)`.

    `y[token] = table[token] + scale * B A[:, token]`, where `table[ids[i]]` is `rows[i]`, not the base's.

    Attributes:
        a, b: `(rank, vocabulary)` and `(dim, rank)`, or None.
        ids, rows: `(n,)` int64 and `(n, dim)`: trained tokens and their embeddings, or None. In a base whose
            output head is tied to the table, these are the head's rows too.
    """

    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0
    ids: Tensor | None = None
    rows: Tensor | None = None

    def tensors(self) -> Iterator[Tensor]:
        """All that there are."""
        for tensor in (self.a, self.b, self.ids, self.rows):
            if tensor is not None:
                yield tensor


@dataclass(frozen=True, slots=True)
class ExpertsDelta:
    """What an adapter adds to one fused parameter of all experts: `W[e] += scale * B[e] A[e]`.

    Attributes:
        a, b: `(experts, rank, in_features)` and `(experts, out_features, rank)`, where each expert's map is
            `(out_features, in_features)` whichever way round the parameter stores it.
    """

    a: Tensor
    b: Tensor
    scale: float

    def tensors(self) -> Iterator[Tensor]:
        """All that there are."""
        yield self.a
        yield self.b


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One adapter version in memory.

    Attributes:
        deltas: by qualified name of the linear map (keys of `BaseSpec.linears`).
        embeddings: by qualified name of the table (keys of `BaseSpec.embeddings`).
        experts: by qualified name of the parameter, such as `model.layers.0.mlp.experts.gate_up_proj`.
        replaced: by qualified name of a module of the base (norm, embedding, output head), its own parameters
            (`weight`, `bias`) as trained.
        head: parameters of a task head that the base does not have, by name as the checkpoint has it
            (`score.weight`, `classifier.out_proj.bias`); empty unless the task needs one.
        task: PEFT's `task_type`; None counts as CAUSAL_LM.
        labels: names of the head's outputs, maybe empty.
        invocation: token ids from whose last occurrence in the prompt on the adapter acts (aLoRA); empty:
            from the first token on.
        members: digests of the adapters that a mixture is the sum of; empty for an adapter with files.
    """

    digest: str
    deltas: Mapping[str, ModuleDelta]
    embeddings: Mapping[str, EmbeddingDelta] = field(default_factory=dict)
    experts: Mapping[str, ExpertsDelta] = field(default_factory=dict)
    replaced: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    task: str | None = None
    labels: tuple[str, ...] = ()
    invocation: tuple[int, ...] = ()
    members: tuple[str, ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        """All of all records."""
        for records in (self.deltas, self.embeddings, self.experts):
            for record in records.values():
                yield from record.tensors()
        for parameters in (*self.replaced.values(), self.head):
            yield from parameters.values()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def max_rank(self) -> int:
        return max((delta.rank for delta in self.deltas.values()), default=0)


def all_finite(tensor: Tensor) -> bool:
    """NaN and infinity survive a sum, which is ten times faster than looking at each value."""
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())
