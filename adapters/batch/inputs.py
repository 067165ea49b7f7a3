"""Rows whose input is scaled before it meets the base's weight: IA3, arXiv 2205.05638, section 3.3."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adapters.batch.placed import Placed
from adapters.batch.segment import Segment


class ScaledInputs:
    """Which rows of a step these are, module by module. Few adapters have any.

    Attributes:
        groups: the groups of the modules that see such rows.
    """

    def __init__(self, segments: Sequence[Segment[Placed]]) -> None:
        self._rows: dict[tuple[int, int], list[tuple[int, int, Tensor]]] = {}
        for segment in segments:
            if segment.adapter is not None and segment.adapter.input_scales:
                for module, scale in segment.adapter.input_scales.items():
                    self._rows.setdefault(module, []).append((segment.start, segment.stop, scale))
        self.groups = {group for group, _ in self._rows}

    def of(self, group: int, member: int, x: Tensor) -> Tensor:
        """What the weight of a module is multiplied with: `x`, or a copy with some of its rows scaled.

        The adapters' own `A` sees `x` as it is.
        """
        rows = self._rows.get((group, member))
        if rows is None:
            return x
        scaled = x.clone()
        for start, stop, scale in rows:
            scaled[start:stop] = x[start:stop].float() * scale
        return scaled
