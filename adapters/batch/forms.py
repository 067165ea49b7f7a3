"""How the rows of one step are multiplied: concatenated, or one segment at a time.

Concatenated: every row goes through every active adapter, and a mask keeps its own columns. A few large
products, but most of the arithmetic is thrown away. Best for decoding, where a row is cheap and each
adapter has one. By segment: each run of rows with one adapter gets products of its own. Nothing is wasted,
but each costs a few calls for every module. Best for prefill.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.batch.placed import PlacedAdapter
from adapters.batch.segment import Segment

# From `python -m bench lora-forms` on 2 cores: multiply-adds per second in the concatenated form, and what a
# segment costs for each module beyond its arithmetic.
CONCATENATED_RATE = 5e10
SEGMENT_SECONDS = 3.5e-5


def short_segments(segments: Sequence[Segment[PlacedAdapter]]) -> list[Segment[PlacedAdapter]]:
    """The first segments, up to the last one that is cheaper in the concatenated form.

    Few if only one adapter is among them: then there is nothing to concatenate, and the list is empty.
    """
    active = {s.adapter.digest: s.adapter for s in segments if s.adapter}
    parameters = sum(adapter.parameters for adapter in active.values())
    last = 0
    for number, segment in enumerate(segments, start=1):
        if segment.adapter is not None:
            wasted = (segment.stop - segment.start) * (parameters - segment.adapter.parameters)
            if wasted / CONCATENATED_RATE < segment.adapter.modules * SEGMENT_SECONDS:
                last = number
    short = list(segments[:last])
    adapters = {s.adapter.digest for s in short if s.adapter}
    return short if len(adapters) > 1 else []
