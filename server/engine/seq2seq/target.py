"""One target on its way: a sequence whose prompt is the model's start token, with a source beside it."""

from __future__ import annotations

from dataclasses import replace

from server.engine.detokenize import TextStream
from server.engine.request import GenerationRequest
from server.engine.seq2seq.memory import Memory
from server.engine.sequence import Sequence


class Target(Sequence):
    """The decoder sees the start token and what it generated. The source is only attended to.

    So penalties count the target alone, as transformers' `generate` counts them for such models.

    Attributes:
        source: the token ids of the request's prompt.
        memory: from its first step on.
    """

    def __init__(
        self, request: GenerationRequest, start: int, base_digest: str, block_size: int, text: TextStream
    ) -> None:
        super().__init__(replace(request, prompt=(start,)), base_digest, block_size, text)
        self.source = request.prompt
        self.memory: Memory | None = None

    @property
    def room(self) -> int:
        """Tokens that it may come to remember: its source, and all that go into the decoder."""
        return len(self.source) + self.request.sampling.max_tokens

    def blocks_for(self, tokens: int) -> int:
        """All that it may ever need, at once: then it is never preempted, and its source encoded once."""
        return 0 if self.blocks else -(-self.room // self._block_size)
