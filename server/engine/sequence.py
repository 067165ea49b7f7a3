"""One sequence on its way through the engine: its tokens, its blocks, how far it has come."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence as Row
from itertools import count

from adapters.batch.placed import Placed
from adapters.errors import InvalidAdapter
from server.engine.detokenize import TextStream
from server.engine.kv import adapted_hash, block_hash, root_hash
from server.engine.request import GenerationRequest, Request, TokenLogprob

Turn = tuple[str, str | None]
"""Tenant and adapter: those who take turns."""
_arrivals = count()
NEVER = sys.maxsize
"""The place of no token."""


class PagedSequence:
    """What the scheduler and the runner need to know. The scheduler sets `blocks`, `computed` and `adapter`.

    Attributes:
        tokens: prompt and generated token ids.
        computed: how many leading tokens have their KV in `blocks`.
        cached: prompt tokens found in the prefix cache when it was first admitted, None before.
        adapter: the placed adapter while the sequence runs (a lease), else None.
        adapted_from: the place of the first token that the adapter acts on, `NEVER` if there is none.
        passed_over: how often others were admitted first while this one waited for adapter memory.
        denied: steps in which it was next and found no room.
        set_back: how often it was preempted for another tenant or adapter; `lost`: tokens to compute again
            since the last time.
    """

    def __init__(self, request: Request, base_digest: str, block_size: int) -> None:
        self.request = request
        self.arrival = next(_arrivals)
        self.tokens = list(request.prompt)
        self.blocks: list[int] = []
        self.computed = 0
        self.cached: int | None = None
        self.adapter: Placed | None = None
        self.adapted_from = invoked_at(request.prompt, request.invocation)
        self.passed_over = 0
        self.denied = 0
        self.set_back = 0
        self.lost = 0
        self.published = 0
        self._block_size = block_size
        adapter = None if self.adapted_from else request.adapter
        self._hashes = [root_hash(request.scope, base_digest, adapter)]

    @property
    def turn(self) -> Turn:
        """Whose turn it takes: fairness is between these."""
        return self.request.tenant, self.request.adapter

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
    def scores_prompt(self) -> bool:
        """Whether logits of all prompt tokens are read."""
        return False

    @property
    def reusable(self) -> int:
        """How many leading tokens may come from the prefix cache, which has neither logits nor hidden states
        of them; never all.
        """
        return len(self.tokens) - 1

    def accept(self, adapter: Placed) -> None:
        """Its adapter is leased.

        Raises:
            InvalidAdapter: the adapter can't do what is asked.
        """
        if adapter.invocation != self.request.invocation:
            raise InvalidAdapter(f"adapter {adapter.digest[:12]} has other invocation tokens than were named")
        self.adapter = adapter

    def blocks_for(self, tokens: int) -> int:
        """Blocks beyond those held that the first `tokens` tokens need."""
        return max(0, -(-tokens // self._block_size) - len(self.blocks))

    def hashes(self, tokens: int) -> list[bytes]:
        """Hashes of the full blocks among the first `tokens` tokens."""
        full = tokens // self._block_size
        while len(self._hashes) <= full:
            start = (len(self._hashes) - 1) * self._block_size
            stop = start + self._block_size
            parent = self._hashes[-1]
            if self.request.adapter and self.adapted_from and start <= self.adapted_from < stop:
                parent = adapted_hash(parent, self.request.adapter, self.adapted_from)
            self._hashes.append(block_hash(parent, self.tokens[start:stop]))
        return self._hashes[1 : full + 1]


class Sequence(PagedSequence):
    """One that generates. The core appends tokens."""

    request: GenerationRequest

    def __init__(
        self, request: GenerationRequest, base_digest: str, block_size: int, text: TextStream
    ) -> None:
        super().__init__(request, base_digest, block_size)
        self.text = text
        self.random = random.Random(request.sampling.seed)
        self.prompt_logprobs: list[TokenLogprob | None] = [None]

    @property
    def scores_prompt(self) -> bool:
        return self.request.sampling.prompt_logprobs is not None

    @property
    def reusable(self) -> int:
        return 0 if self.scores_prompt else super().reusable


def invoked_at(prompt: Row[int], invocation: Row[int]) -> int:
    """Where `invocation` begins in `prompt` for the last time; `NEVER` if it is not there; 0 if it is empty.

    As PEFT's `calculate_alora_offsets`: tokens that are generated later invoke nothing.
    """
    if not invocation:
        return 0
    wanted = tuple(invocation)
    starts = range(len(prompt) - len(wanted), -1, -1)
    return next((i for i in starts if tuple(prompt[i : i + len(wanted)]) == wanted), NEVER)
