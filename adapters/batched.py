"""One forward pass over tokens of many adapters.

    x ── W (frozen) ────────────────────────────── + ── y
     └── A of all active adapters ── own columns ── B ──┘

The engine calls `AdapterBatch.begin` with the segments of the step's flat token row, then the model. Each
`BatchedLinear` stands where the base's linear layer stood and asks the batch for its delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.linear import LinearMap, make_linear
from adapters.pack import Pack, PackedGroup
from adapters.placed import Groups, PlacedAdapter, PlacedGroup


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start:stop` of the step's tokens use `adapter`, or the bare base."""

    start: int
    stop: int
    adapter: PlacedAdapter | None


def coalesce(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbours that use the same adapter."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].adapter is segment.adapter:
            joined[-1] = Segment(joined[-1].start, segment.stop, segment.adapter)
        else:
            joined.append(segment)
    return joined


# Measured in bench/lora_forms.py on 2 cores in bfloat16: a product of the concatenated form runs at this
# many multiply-adds a second, and one segment of the segmented form costs this many seconds for one group
# beyond its arithmetic.
CONCAT_RATE = 1.2e11
SEGMENT_SECONDS = 4e-5

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # the integer as wide as a float, by bytes


def prefers_segments(segments: Sequence[Segment], rank: int, width: int) -> bool:
    """Whether one product for each segment beats the concatenated form.

    The concatenated form multiplies every row by every adapter's rank; `rank` is their sum and `width` the
    typical number of input and output features. Segments waste nothing but pay for each one.
    """
    rows = segments[-1].stop
    own = sum(
        (s.stop - s.start) * max(g.a.shape[0] for g in s.adapter.groups.values())
        for s in segments
        if s.adapter and s.adapter.groups
    )
    wasted = (rows * rank - own) * width / CONCAT_RATE
    return wasted > sum(s.adapter is not None for s in segments) * SEGMENT_SECONDS


class _Rows:
    """The adapters of one set of rows: those of all tokens, or those whose logits are computed."""

    def __init__(self, segments: Sequence[Segment], pack: Pack, width: int) -> None:
        self.segments = coalesce(segments)
        self.count = segments[-1].stop
        self.pack = pack
        self.by_segment = prefers_segments(self.segments, pack.rank, width)
        self._slots: Tensor | None = None
        self._masks: dict[int, Tensor] = {}
        self._shrunk: tuple[Tensor, int, Tensor] | None = None

    def mask(self, layout: int, bits: torch.dtype) -> Tensor:
        """`(rows, total rank)` integers: all bits set where the row's adapter owns the column, else none."""
        if layout not in self._masks:
            owners = self.pack.layouts[layout]
            if self._slots is None:
                lengths = torch.tensor([s.stop - s.start for s in self.segments])
                slots = torch.tensor(
                    [self.pack.slots[s.adapter.digest] if s.adapter else -1 for s in self.segments]
                )
                self._slots = slots.repeat_interleave(lengths).to(owners.device)
            self._masks[layout] = (self._slots[:, None] == owners).to(bits).neg_()
        return self._masks[layout]

    def shrink(self, source: Tensor, x: Tensor, index: int, group: PackedGroup) -> Tensor:
        """`x A^T` with foreign columns zeroed; the modules of a group share one product.

        Their bits are cleared: another adapter may overflow here, and its `0 * inf` would be NaN for all.
        """
        if self._shrunk is None or self._shrunk[0] is not source or self._shrunk[1] != index:
            shrunk = x @ group.a.t()
            bits = _BITS[shrunk.element_size()]
            shrunk.view(bits).bitwise_and_(self.mask(group.layout, bits))
            self._shrunk = (source, index, shrunk)
        return self._shrunk[2]


class AdapterBatch:
    """The adapters of the step in flight, shared by all `BatchedLinear`s of one model."""

    def __init__(self, groups: Groups, widths: Sequence[int]) -> None:
        """`widths`: input plus output features of each group, for choosing between the two forms."""
        self.groups = groups
        self.use_merged = False
        self._width = max(widths, default=1)
        self._pack: Pack | None = None
        self._tokens: _Rows | None = None
        self._logits: _Rows | None = None

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment]) -> None:
        """Set the adapters of the next forward pass: of its token rows, and of its logit rows."""
        active = {s.adapter.digest: s.adapter for s in tokens if s.adapter}
        if not active:
            self._tokens = self._logits = None
            return
        pack = self._pack_for(active)
        self._tokens = _Rows(tokens, pack, self._width)
        self._logits = _Rows(logits, pack, self._width) if logits else None

    def end(self) -> None:
        """Forget the step; the concatenation is kept for the next one."""
        self._tokens = self._logits = None

    def _pack_for(self, active: dict[str, PlacedAdapter]) -> Pack:
        """The last concatenation if it covers `active` without much waste, else a new one."""
        pack = self._pack
        if pack is None or not active.keys() <= pack.slots.keys() or len(pack.slots) > 2 * len(active):
            pack = self._pack = Pack(list(active.values()))
        return pack

    @property
    def pack_bytes(self) -> int:
        return self._pack.nbytes if self._pack else 0

    def apply(self, module: BatchedLinear, source: Tensor, x: Tensor) -> Tensor:
        """`W x` with each row's own delta. `source` is the tensor that the module was called with."""
        rows = self._logits if module.on_logits else self._tokens
        if rows is None:
            return module.linear(x)
        if x.shape[0] != rows.count:
            raise RuntimeError(f"{module.name} got {x.shape[0]} rows where the step has {rows.count}")
        group = rows.pack.groups.get(module.group)
        part = group and group.parts[module.member]
        if not group or not part:
            return module.linear(x)
        if rows.by_segment:
            return _by_segment(module, rows, x)
        shrunk = rows.shrink(source, x, module.group, group)
        return module.linear(x, shrunk[:, part.start : part.stop] @ part.bt)


def _by_segment(module: BatchedLinear, rows: _Rows, x: Tensor) -> Tensor:
    y = module.linear(x)
    for segment in rows.segments:
        group: PlacedGroup | None = segment.adapter.groups.get(module.group) if segment.adapter else None
        part = group and group.parts[module.member]
        if group and part:
            own = slice(segment.start, segment.stop)
            y[own].addmm_(x[own] @ group.a[part.start : part.stop].t(), part.bt)
    return y


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
