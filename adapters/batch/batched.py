"""One forward pass over tokens of many adapters.

    x ── W (frozen) ──────────────────── + ── y
     └── A of the row's own adapter ── B ──┘

The engine calls `AdapterBatch.begin` with the segments of the step's flat token row, then the model. Each
`BatchedLinear` stands where the base's linear layer stood and asks the batch for its output. How the deltas
are computed is the batch's own affair: `native/batch.py` on a CPU with a compiler, `plain.py` in torch
operations anywhere, `cuda/batch.py` on a GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from adapters.batch.extras import place_extras
from adapters.batch.linear import LinearMap
from adapters.batch.overrides import Overrides
from adapters.batch.placed import Groups, Placed
from adapters.batch.segment import Segment
from adapters.delta import AdapterWeights

P = TypeVar("P", bound=Placed)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """What a batch must be ready for: `adapters` in one step, each of at most `rank` in every module."""

    adapters: int = 64
    rank: int = 256


class AdapterBatch(ABC, Generic[P, R]):
    """The adapters of the step in flight, shared by all `BatchedLinear`s of one model.

    `P` is the form that it places adapters in, `R` what it keeps of a set of rows: all tokens of the step, or
    those whose logits are computed.

    Attributes:
        token_segments, logit_segments: whose the rows of the step in flight are; empty between steps.
        overrides: what the adapters change beside the linear maps, on the model that the batch belongs to.
    """

    def __init__(self, groups: Groups, dtype: torch.dtype, *, pin: bool = False) -> None:
        """`dtype`: of the rows; `pin`: place adapters in page-locked memory, to be copied on."""
        self.groups = groups
        self.dtype = dtype
        self.pin = pin
        self.use_merged = False
        self.overrides = Overrides(nn.Module(), {})
        self.token_segments: Sequence[Segment[P]] = ()
        self.logit_segments: Sequence[Segment[P]] = ()
        self._tokens: R | None = None
        self._logits: R | None = None

    def place(self, weights: AdapterWeights) -> P:
        """Put an adapter into the form that this batch computes with, on the host.

        Raises:
            InvalidAdapter: a value is too large for the type that is computed in, or the model has no place
                for something.
        """
        self.overrides.check(weights)
        placed = self._place(weights)
        extras = place_extras(weights, self.dtype, pin=self.pin)
        nbytes = placed.nbytes + (extras.nbytes if extras is not None else 0)
        invocation, members = weights.invocation, weights.members
        return replace(placed, extras=extras, nbytes=nbytes, invocation=invocation, members=members)

    @abstractmethod
    def _place(self, weights: AdapterWeights) -> P:
        """`place`, of the linear deltas."""

    @abstractmethod
    def _rows(self, segments: Sequence[Segment[P]], on_logits: bool) -> R:
        """What is known of `segments`, at least one of which has an adapter, before the model runs."""

    @abstractmethod
    def _apply(self, rows: R, module: BatchedLinear, source: Tensor, x: Tensor) -> Tensor:
        """`apply`, where some row has an adapter."""

    def attach(self, layer: BatchedLinear) -> None:
        """A layer of this batch was made: the next member of its group."""

    def begin(self, tokens: Sequence[Segment[P]], logits: Sequence[Segment[P]]) -> None:
        """Set the adapters of the next forward pass: of its token rows, and of its logit rows."""
        self.end()
        self.token_segments, self.logit_segments = tokens, logits
        if any(segment.adapter for segment in tokens):
            self._tokens = self._rows(tokens, on_logits=False)
            if any(segment.adapter for segment in logits):
                self._logits = self._rows(logits, on_logits=True)
            self.overrides.begin(tokens, logits)

    def end(self) -> None:
        """Forget the step."""
        self._tokens = self._logits = None
        self.token_segments = self.logit_segments = ()
        self.overrides.end()

    def apply(self, module: BatchedLinear, source: Tensor, x: Tensor) -> Tensor:
        """`W x` with each row's own delta; or with the merged `W`, in steps that use it.

        Args:
            source: the tensor that the module was called with. The modules of a group are called with the
                same one, and share what is computed from it.
            x: `source` as `(rows, in_features)`.
        """
        if self.use_merged:
            return module.frozen(merged=True)(x)
        rows = self._logits if module.on_logits else self._tokens
        return module.linear(x) if rows is None else self._apply(rows, module, source, x)


class BatchedLinear(nn.Module):
    """Stands in for one linear layer of the base and adds each row's own delta.

    Attributes:
        group, member: the group of modules with the same input, and the place in it.
        on_logits: called with the rows whose logits are computed (the output head), not with all tokens.
        merged: a copy of the weight with one adapter in it, used when all rows of a step are that adapter's.
    """

    bias: Tensor | None

    def __init__(
        self,
        name: str,
        linear: LinearMap,
        bias: Tensor | None,
        batch: AdapterBatch[Any, Any],
        group: int,
        member: int,
        on_logits: bool,
    ) -> None:
        """`linear`: the frozen `W x + b`, `bias` its `b`."""
        super().__init__()
        self.name = name
        self.linear = linear
        self.bias = bias
        self.merged: LinearMap | None = None
        self.batch = batch
        self.group = group
        self.member = member
        self.on_logits = on_logits
        batch.attach(self)

    def frozen(self, *, merged: bool) -> LinearMap:
        """The base's own map, or the merged one if that is asked for and there is one."""
        return self.merged if merged and self.merged is not None else self.linear

    @property
    def weight(self) -> Tensor:
        """The frozen weight, `(out_features, in_features)`: for code of the model that asks for it."""
        return self.linear.weight()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = self.batch.apply(self, x, flat)
        return y.view(*x.shape[:-1], y.shape[-1])
