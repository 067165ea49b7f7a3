"""Many adapters in training, in one forward and backward pass over a base that is held once.

    x ── W (frozen) ────────────────────────────────── + ── y
     └── dropout ── A of the row's own adapter ── B ───┘

The rows of an adapter lie together. Neighbours with as many rows each are computed in one batched product, in
which every adapter is a matrix of its own: no number of one, not even an infinity, meets a row of another, in
the pass forward or back. `batched.py` does this for serving, without gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class TrainableDelta:
    """`scale * B A` of one linear layer. `a`: `(rank, in_features)`, `b`: `(out_features, rank)`."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float


@dataclass(frozen=True, eq=False)
class TrainableAdapter:
    """One adapter in training.

    Attributes:
        deltas: by name of the linear layer.
        dropout: share of the numbers of `x` that the deltas do not see.
        generator: what drops them by chance: its own, so that neighbours change nothing.
    """

    deltas: Mapping[str, TrainableDelta]
    dropout: float = 0.0
    generator: torch.Generator = field(default_factory=torch.Generator)

    def parameters(self) -> list[nn.Parameter]:
        """All, module by module, A before B."""
        return [parameter for delta in self.deltas.values() for parameter in (delta.a, delta.b)]


@dataclass(frozen=True, slots=True)
class Share:
    """An adapter's part of a pass: sequences of at most `width` tokens, padded to the pass's own width."""

    adapter: TrainableAdapter
    sequences: int
    width: int


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows from `start` on: `rows` of the first share, as many of the next, and so on."""

    start: int
    rows: int
    shares: tuple[Share, ...]

    @property
    def stop(self) -> int:
        return self.start + self.rows * len(self.shares)


class TrainableBatch:
    """The adapters of the pass in flight, shared by all `TrainableLinear`s of one model.

    Between passes, and for layers that none of them touches, the model is the bare base.
    """

    def __init__(self) -> None:
        self._shares: tuple[Share, ...] = ()
        self._width = 0

    def attach(self, model: nn.Module, names: Sequence[str]) -> None:
        """Put a `TrainableLinear` where each of these linear layers stands."""
        for name in names:
            parent, _, child = name.rpartition(".")
            module = model.get_submodule(name)
            if not isinstance(module, TrainableLinear):
                setattr(model.get_submodule(parent), child, TrainableLinear(name, module, self))

    @contextmanager
    def passing(self, shares: Sequence[Share], width: int) -> Iterator[None]:
        """Inside, the model is called with the sequences of `shares`, one share after another.

        So it is while gradients are computed, where the model computes parts of the pass anew for them.
        """
        self._shares, self._width = tuple(shares), width
        try:
            yield
        finally:
            self._shares = ()

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """`y` with each row's own delta of the layer `name`.

        Args:
            x: `(rows, in_features)`, what the layer was called with.
            y: `(rows, out_features)`, what the base makes of it.

        Raises:
            RuntimeError: the layer does not see one row for each token.
        """
        if not self._shares:
            return y
        rows = self._width * sum(share.sequences for share in self._shares)
        if len(x) != rows:
            raise RuntimeError(f"{name} got {len(x)} rows where the pass has {rows}")
        pieces: list[Tensor] = []
        done = 0
        for run in self._runs(name):
            if (run.start, run.stop) == (0, rows):
                return self._add_run(name, run, x, y)
            if run.start > done:
                pieces.append(y[done : run.start])
            inside = slice(run.start, run.stop)
            pieces.append(self._add_run(name, run, x[inside], y[inside]))
            done = run.stop
        return torch.cat([*pieces, y[done:]]) if pieces else y

    def _runs(self, name: str) -> Iterator[_Run]:
        """Neighbours that change this layer and have as many rows each."""
        start, found = 0, _Run(0, 0, ())
        for share in self._shares:
            rows = share.sequences * self._width
            touched = name in share.adapter.deltas
            if found.shares and not (touched and rows == found.rows):
                yield found
                found = _Run(0, 0, ())
            if touched:
                found = _Run(found.start if found.shares else start, rows, (*found.shares, share))
            start += rows
        if found.shares:
            yield found

    def _add_run(self, name: str, run: _Run, x: Tensor, y: Tensor) -> Tensor:
        deltas = [share.adapter.deltas[name] for share in run.shares]
        rank = max(len(delta.a) for delta in deltas)
        a = torch.stack([_rows(delta.a, rank) for delta in deltas])
        b = torch.stack([_rows(delta.b.t() * delta.scale, rank) for delta in deltas])
        seen = x.to(a.dtype)
        if any(share.adapter.dropout for share in run.shares):
            seen = seen * torch.cat([self._kept(share, seen) for share in run.shares])
        shrunk = torch.bmm(seen.view(len(deltas), run.rows, -1), a.transpose(1, 2))
        base = y.view(len(deltas), run.rows, -1)
        if y.dtype == a.dtype:
            return torch.baddbmm(base, shrunk, b).view(y.shape)
        return (base + torch.bmm(shrunk, b)).to(y.dtype).view(y.shape)

    def _kept(self, share: Share, like: Tensor) -> Tensor:
        """What `x` is multiplied by, `(rows, in_features)`: 0 where it is dropped.

        Drawn in the shape that the adapter's sequences have without neighbours, and padded.
        """
        adapter, features = share.adapter, like.shape[1]
        if not adapter.dropout:
            return like.new_ones(share.sequences * self._width, features)
        kept = like.new_empty(share.sequences, share.width, features)
        kept.bernoulli_(1 - adapter.dropout, generator=adapter.generator).div_(1 - adapter.dropout)
        return F.pad(kept, (0, 0, 0, self._width - share.width)).view(-1, features)


def _rows(matrix: Tensor, rows: int) -> Tensor:
    """The matrix with rows of zeros below, as many as are missing."""
    return matrix if len(matrix) == rows else F.pad(matrix, (0, 0, 0, rows - len(matrix)))


class TrainableLinear(nn.Module):
    """Stands in for one linear layer of the base, of whatever kind, and adds each row's own delta."""

    def __init__(self, name: str, base: nn.Module, batch: TrainableBatch) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.batch = batch

    @property
    def weight(self) -> Tensor:
        """The frozen weight, as the base stores it: for code of the model that asks for it."""
        return cast(Tensor, self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, self.base.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        added = self.batch.add(self.name, x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))
        return added.view(y.shape)
