"""One request on its way through an encoder."""

from __future__ import annotations

from itertools import count

from adapters.batch.placed import Placed
from server.engine.request import PoolingRequest, PoolingTask
from server.engine.sequence import Turn

HEAD_TASKS: dict[PoolingTask, str] = {"classify": "SEQ_CLS", "token_classify": "TOKEN_CLS"}
"""PEFT's names of what needs a head."""
_arrivals = count()


class EncoderSequence:
    """A prompt, and the adapter while it runs (a lease), else None."""

    def __init__(self, request: PoolingRequest) -> None:
        self.request = request
        self.arrival = next(_arrivals)
        self.adapter: Placed | None = None

    @property
    def turn(self) -> Turn:
        """Whose turn it takes: fairness is between these."""
        return self.request.tenant, self.request.adapter

    @property
    def length(self) -> int:
        return len(self.request.prompt)

    @property
    def task(self) -> str | None:
        """PEFT's name of the head that the answer goes through; None for an embedding."""
        return HEAD_TASKS.get(self.request.task)
