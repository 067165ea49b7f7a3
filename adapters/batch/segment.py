"""Which rows of one step use which adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from adapters.batch.placed import Placed

P = TypeVar("P", bound=Placed, covariant=True)


@dataclass(frozen=True, slots=True)
class Segment(Generic[P]):
    """Rows `start:stop` of the step's tokens use `adapter`, or the bare base."""

    start: int
    stop: int
    adapter: P | None


def coalesce(segments: Sequence[Segment[P]]) -> list[Segment[P]]:
    """Join neighbours that use the same adapter."""
    joined: list[Segment[P]] = []
    for segment in segments:
        if joined and joined[-1].adapter is segment.adapter:
            joined[-1] = Segment(joined[-1].start, segment.stop, segment.adapter)
        else:
            joined.append(segment)
    return joined
