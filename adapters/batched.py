"""One forward pass over tokens of many adapters.

    x ── W (frozen) ────────────────────────────── + ── y
     └── A of all active adapters ── own columns ── B ──┘

The engine calls `AdapterBatch.begin` with the segments of the step's flat token row, then the model. Each
`BatchedLinear` stands where the base's linear layer stood and asks the batch for its delta.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapters.forms import Segment, coalesce, short_segments
from adapters.linear import LinearMap, make_linear
from adapters.pack import PackCache, PackedGroup
from adapters.placed import Groups, PlacedAdapter, PlacedPart

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # the integer as wide as a float, by bytes


class _Rows:
    """The adapters of one set of rows: those of all tokens, or those whose logits are computed.

    Rows `0:concatenated` use the concatenated form, the segments behind them a product of their own.
    """

    def __init__(self, segments: Sequence[Segment], packs: PackCache) -> None:
        segments = coalesce(segments)
        self.count = segments[-1].stop
        short = short_segments(segments)
        self.pack = packs.get(short)
        self.concatenated = short[-1].stop if short and self.pack else 0
        self.long = [s for s in segments if s.start >= self.concatenated and s.adapter]
        self._short = short
        self._slots: Tensor | None = None
        self._masks: dict[int, Tensor] = {}
        self._shrunk: tuple[Tensor, int, list[Tensor | None]] | None = None

    def deltas(self, source: Tensor, x: Tensor, index: int) -> list[Tensor | None]:
        """`x A^T` of group `index`, for the concatenated rows and for each long segment.

        The modules of a group are called with the same tensor, `source`, and share these products.
        """
        if self._shrunk is None or self._shrunk[0] is not source or self._shrunk[1] != index:
            packed = self.pack.groups.get(index) if self.pack else None
            shrunk = [self._shrink(x, packed) if packed else None]
            for segment in self.long:
                group = segment.adapter.groups.get(index) if segment.adapter else None
                shrunk.append(x[segment.start : segment.stop] @ group.at if group else None)
            self._shrunk = (source, index, shrunk)
        return self._shrunk[2]

    def _shrink(self, x: Tensor, group: PackedGroup) -> Tensor:
        """`x A^T` of the concatenated rows with foreign columns zeroed.

        Their bits are cleared: another adapter may overflow here, and its `0 * inf` would be NaN for all.
        """
        shrunk = x[: self.concatenated] @ group.at
        bits = _BITS[shrunk.element_size()]
        shrunk.view(bits).bitwise_and_(self._mask(group.layout, bits))
        return shrunk

    def _mask(self, layout: int, bits: torch.dtype) -> Tensor:
        """`(rows, total rank)` integers: all bits set where the row's adapter owns the column, else none."""
        if layout not in self._masks:
            assert self.pack is not None
            owners = self.pack.layouts[layout]
            if self._slots is None:
                lengths = torch.tensor([s.stop - s.start for s in self._short])
                own = [self.pack.slots[s.adapter.digest] if s.adapter else -1 for s in self._short]
                self._slots = torch.tensor(own).repeat_interleave(lengths).to(owners.device)
            self._masks[layout] = (self._slots[:, None] == owners).to(bits).neg_()
        return self._masks[layout]


class AdapterBatch:
    """The adapters of the step in flight, shared by all `BatchedLinear`s of one model."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.use_merged = False
        self._packs = PackCache()
        self._head_packs = PackCache()
        self._tokens: _Rows | None = None
        self._logits: _Rows | None = None

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment]) -> None:
        """Set the adapters of the next forward pass: of its token rows, and of its logit rows."""
        self.end()
        if any(segment.adapter for segment in tokens):
            self._tokens = _Rows(tokens, self._packs)
            self._logits = _Rows(logits, self._head_packs) if logits else None

    def end(self) -> None:
        """Forget the step; the concatenation is kept for the next one."""
        self._tokens = self._logits = None

    def apply(self, module: BatchedLinear, source: Tensor, x: Tensor) -> Tensor:
        """`W x` with each row's own delta. `source` is the tensor that the module was called with."""
        rows = self._logits if module.on_logits else self._tokens
        if rows is None:
            return module.linear(x)
        if x.shape[0] != rows.count:
            raise RuntimeError(f"{module.name} got {x.shape[0]} rows where the step has {rows.count}")
        first, *others = rows.deltas(source, x, module.group)
        y: Tensor | None = None
        if first is not None and rows.pack is not None:
            part = rows.pack.groups[module.group].parts[module.member]
            if part is not None:
                delta = first[:, part.start : part.stop] @ part.bt
                if rows.concatenated == rows.count:
                    return module.linear(x, delta)
                y = module.linear(x)
                y[: rows.concatenated] += delta
        y = module.linear(x) if y is None else y
        for segment, shrunk in zip(rows.long, others, strict=True):
            part = _part(segment.adapter, module)
            if part is not None and shrunk is not None:
                y[segment.start : segment.stop].addmm_(shrunk[:, part.start : part.stop], part.bt)
        return y


def _part(adapter: PlacedAdapter | None, module: BatchedLinear) -> PlacedPart | None:
    group = adapter.groups.get(module.group) if adapter else None
    return group.parts[module.member] if group else None


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
        weight: Tensor,
        bias: Tensor | None,
        batch: AdapterBatch,
        group: int,
        member: int,
        on_logits: bool,
    ) -> None:
        """`weight`: `(out_features, in_features)`; it is kept, or a packed copy of it."""
        super().__init__()
        self.name = name
        self.linear = make_linear(weight, bias)
        self.bias = bias
        self.merged: LinearMap | None = None
        self.batch = batch
        self.group = group
        self.member = member
        self.on_logits = on_logits

    @property
    def weight(self) -> Tensor:
        """The frozen weight, `(out_features, in_features)`: for code of the model that asks for it."""
        return self.linear.weight()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if self.merged is not None and self.batch.use_merged:
            y = self.merged(flat)
        else:
            y = self.batch.apply(self, x, flat)
        return y.view(*x.shape[:-1], y.shape[-1])
