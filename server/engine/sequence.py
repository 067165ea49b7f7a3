"""One sequence on its way through the engine: its tokens, its blocks, how far it has come."""

from __future__ import annotations

import random
from itertools import count

from adapters.placed import Placed
from server.engine.detokenize import TextStream
from server.engine.kv import block_hash, root_hash
from server.engine.request import GenerationRequest, TokenLogprob

_arrivals = count()


class Sequence:
    """State of one request. The scheduler sets `blocks`, `computed` and `adapter`; the core appends tokens.

    Attributes:
        tokens: prompt and generated token ids.
        computed: how many leading tokens have their KV in `blocks`.
        cached: prompt tokens found in the prefix cache when it was first admitted, None before.
        adapter: the placed adapter while the sequence runs (a lease), else None.
        passed_over: how often others were admitted first while this one waited for adapter memory.
    """

    def __init__(
        self, request: GenerationRequest, base_digest: str, block_size: int, text: TextStream
    ) -> None:
        self.request = request
        self.arrival = next(_arrivals)
        self.tokens = list(request.prompt)
        self.text = text
        self.blocks: list[int] = []
        self.computed = 0
        self.cached: int | None = None
        self.adapter: Placed | None = None
        self.passed_over = 0
        self.random = random.Random(request.sampling.seed)
        self.prompt_logprobs: list[TokenLogprob | None] = [None]
        self.published = 0
        self._block_size = block_size
        self._hashes = [root_hash(request.scope, base_digest, request.adapter)]

    @property
    def turn(self) -> tuple[str, str | None]:
        """Whose turn it takes: fairness is between these."""
        return self.request.scope, self.request.adapter

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def remaining(self) -> int:
        """Tokens whose KV is still to be computed; the last of them gives the next token."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        return self.remaining == 1 and self.generated > 0

    @property
    def reuses_prefix(self) -> bool:
        """Scores of prompt tokens need their logits, which cached KV does not give."""
        return self.request.sampling.prompt_logprobs is None

    def blocks_for(self, tokens: int) -> int:
        """Blocks beyond those held that the first `tokens` tokens need."""
        return max(0, -(-tokens // self._block_size) - len(self.blocks))

    def hashes(self, tokens: int) -> list[bytes]:
        """Hashes of the full blocks among the first `tokens` tokens."""
        full = tokens // self._block_size
        while len(self._hashes) <= full:
            start = (len(self._hashes) - 1) * self._block_size
            self._hashes.append(block_hash(self._hashes[-1], self.tokens[start : start + self._block_size]))
        return self._hashes[1 : full + 1]
