"""Mixtures: `y = base + sum of w_i (y_i - base)` over several adapters, served as one that has no files.

By this rule `A` and `B` are stacked with `w_i` in `B`, magnitudes become `1 + sum w_i (m_i - 1)`, and shifts
`sum w_i shift_i`. In weights it is `W + sum w_i (W_i - W)`, where `W_i` is the base with adapter `i` merged
(arXiv 2109.01903). For LoRA it is what PEFT computes with several active adapters whose scales were set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from adapters.delta import AdapterWeights, EmbeddingDelta, ExpertsDelta, ModuleDelta
from adapters.errors import AdapterTooLarge, InvalidAdapter

T = TypeVar("T")
_MARK = b"multilora mixture 1"


@dataclass(frozen=True, slots=True)
class Mixture:
    """Adapters by digest, each with what its difference from the base is multiplied by.

    `members` are sorted, so that the order in which they were named changes neither digest nor rounding.
    """

    members: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, members: Sequence[tuple[str, float]]) -> Mixture:
        """In whatever order."""
        return cls(tuple(sorted(members)))

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the members' digests and the exact scales: an identity as an adapter's is."""
        lines = [_MARK, *(f"{digest} {scale.hex()}".encode() for digest, scale in self.members)]
        return hashlib.sha256(b"\n".join(lines)).hexdigest()


class Mixtures:
    """The mixtures that requests hold, and the way to their weights. Safe from any thread.

    Args:
        load: reads the weights of one adapter version.
        budget: bytes that the members of one mixture may take together.
    """

    def __init__(self, load: Callable[[str], AdapterWeights], budget: int) -> None:
        self._load, self._budget = load, budget
        self._lock = Lock()
        self._held: dict[str, tuple[Mixture, int]] = {}

    def hold(self, mixture: Mixture) -> None:
        """`load` finds it until as many `release` calls. Who holds it must hold its members' files too."""
        digest = mixture.digest
        with self._lock:
            self._held[digest] = mixture, self._held.get(digest, (mixture, 0))[1] + 1

    def release(self, mixture: Mixture) -> None:
        """Give back one `hold`."""
        digest = mixture.digest
        with self._lock:
            count = self._held.pop(digest)[1] - 1
            if count:
                self._held[digest] = mixture, count

    def load(self, digest: str) -> AdapterWeights:
        """The weights of a held mixture; of any other digest what reading the adapter gives.

        Raises:
            AdapterTooLarge: its members take more than the budget.
            AdapterError: a member can't be read, or not be mixed.
        """
        with self._lock:
            held = self._held.get(digest)
        if held is None:
            return self._load(digest)
        parts: list[tuple[AdapterWeights, float]] = []
        nbytes = 0
        for member, scale in held[0].members:
            weights = self._load(member)
            nbytes += weights.nbytes
            if nbytes > self._budget:
                raise AdapterTooLarge(
                    "the adapters of this mixture take more memory than all adapters together may "
                    f"({self._budget / 2**20:.1f} MiB); mix fewer, or raise --adapter-memory-gb"
                )
            parts.append((weights, scale))
        return mix(digest, parts)


def unmixable(weights: AdapterWeights) -> str:
    """Why an adapter can't be scaled or be one of several, or "": a sum of what replaces has no meaning."""
    scaled = [name for name, delta in weights.deltas.items() if delta.input_scale is not None]
    reasons: list[tuple[str, Sequence[str]]] = [
        ("it replaces {}", tuple(weights.replaced)),
        ("it has a task head, {}", tuple(weights.head)),
        ("it trains tokens of {}", [name for name, e in weights.embeddings.items() if e.ids is not None]),
        ("it scales the input of {}", scaled),
        ("it acts from its invocation tokens on only (aLoRA){}", [""] if weights.invocation else []),
    ]
    return next((reason.format(names[0]) for reason, names in reasons if names), "")


def mix(digest: str, parts: Sequence[tuple[AdapterWeights, float]]) -> AdapterWeights:
    """The sum of `parts`, each an adapter and what its difference from the base is multiplied by.

    Raises:
        InvalidAdapter: one of them is `unmixable`.
    """
    for weights, _ in parts:
        if reason := unmixable(weights):
            raise InvalidAdapter(f"adapter {weights.digest[:12]} can't be scaled or mixed: {reason}")
    tasks = {weights.task for weights, _ in parts}
    return AdapterWeights(
        digest,
        {name: _linear(found) for name, found in _by_name(parts, lambda weights: weights.deltas)},
        {name: _embedding(found) for name, found in _by_name(parts, lambda weights: weights.embeddings)},
        {name: _experts(found) for name, found in _by_name(parts, lambda weights: weights.experts)},
        task=tasks.pop() if len(tasks) == 1 else None,
        members=tuple(weights.digest for weights, _ in parts),
    )


def _by_name(
    parts: Sequence[tuple[AdapterWeights, float]], records: Callable[[AdapterWeights], Mapping[str, T]]
) -> Iterator[tuple[str, list[tuple[T, float]]]]:
    """Each name that any part has a record of, with these records and their parts' scales."""
    for name in dict.fromkeys(name for weights, _ in parts for name in records(weights)):
        found = [(records(weights)[name], scale) for weights, scale in parts if name in records(weights)]
        yield name, found


def _linear(found: Sequence[tuple[ModuleDelta, float]]) -> ModuleDelta:
    magnitudes = [scale * (d.magnitude - 1) for d, scale in found if d.magnitude is not None]
    shifts = [scale * d.shift for d, scale in found if d.shift is not None]
    magnitude = 1 + _sum(magnitudes) if magnitudes else None
    shift = _sum(shifts) if shifts else None
    if len(found) == 1:  # `b` stays as it is stored, maybe in bfloat16
        delta, scale = found[0]
        return replace(delta, scale=scale * delta.scale, magnitude=magnitude, shift=shift)
    a = _cat([delta.a for delta, _ in found], 0)
    return ModuleDelta(a, _cat([_scaled(d.b, s * d.scale) for d, s in found], 1), 1.0, magnitude, shift)


def _embedding(found: Sequence[tuple[EmbeddingDelta, float]]) -> EmbeddingDelta:
    factors = [(d.a, d.b, s * d.scale) for d, s in found if d.a is not None and d.b is not None]
    a, b = _cat([a for a, _, _ in factors], 0), _cat([_scaled(b, s) for _, b, s in factors], 1)
    return EmbeddingDelta(a, b)


def _experts(found: Sequence[tuple[ExpertsDelta, float]]) -> ExpertsDelta:
    a = _cat([delta.a for delta, _ in found], 1)
    return ExpertsDelta(a, _cat([_scaled(d.b, s * d.scale) for d, s in found], 2), 1.0)


def _scaled(b: Tensor, scale: float) -> Tensor:
    return b.float() * scale


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def _cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """In float32 unless all have the same type."""
    same = len({tensor.dtype for tensor in tensors}) == 1
    return torch.cat([tensor if same else tensor.float() for tensor in tensors], dim).contiguous()
