"""What the handlers work with: the collaborators as protocols, and one record that holds them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol, cast

import anyio
from fastapi import Depends, Request

from adapters.base import BaseSpec
from adapters.mixture import Mixtures
from server.access.budgets import Budgets
from server.access.principal import Access
from server.api.errors import draining
from server.api.registry import Registry
from server.api.tokens import TokenBytes
from server.engine.request import GenerationOutput, GenerationRequest, PoolingOutput, PoolingRequest
from server.engine.stats import EngineStats
from server.jobs.service import Service
from server.metrics import Metrics
from server.settings import Settings

MAX_UPLOADS = 4
"""Uploads that may be written to disk at the same time; one more is a 429."""
MAX_TENANT_UPLOADS = 3
"""Of one tenant: a slow one leaves a place to others."""


class Engine(Protocol):
    """The part of `server.engine.engine.Engine` that HTTP needs.

    `BaseSpec.kind` says which of `generate` and `pool` a base can do; `tasks.py` asks for no other.
    """

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationOutput]: ...

    async def pool(self, request: PoolingRequest) -> PoolingOutput: ...

    def stats(self) -> EngineStats: ...

    def residency(self, digest: str) -> str: ...

    def prefetch(self, digest: str) -> None: ...

    def pin(self, digests: set[str]) -> None: ...

    def set_weights(self, weights: Mapping[str, float]) -> None: ...


class Tokenizer(Protocol):
    """The part of a transformers fast tokenizer that HTTP needs."""

    @property
    def chat_template(self) -> object: ...

    @property
    def all_special_ids(self) -> list[int]: ...

    def get_vocab(self) -> dict[str, int]: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def __call__(
        self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool
    ) -> Mapping[str, Any]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str: ...


@dataclass
class ServerContext:
    """Everything that one server process answers from.

    Attributes:
        base: `base.name` is the base's name in the API.
        started: unix time, the `created` of the base's model card.
        training: None where the operator has turned it off.
        draining: set it when the server stops; from then on new work is refused with a 503.
        checks: of uploads that nobody waits for.
        merging: held while one merged model is made and sent.
        uploads: those that come in now, by tenant.
        shadows: copies of requests that run now.
        applied: digests of the versions whose desired state was seen to.
    """

    settings: Settings
    base: BaseSpec
    tokenizer: Tokenizer
    engine: Engine
    registry: Registry
    mixtures: Mixtures
    started: float
    training: Service | None = None
    draining: bool = False
    metrics: Metrics = field(init=False)
    tokens: TokenBytes = field(init=False)
    max_prompt_chars: int = field(init=False)
    tokenizing: anyio.CapacityLimiter = field(init=False)
    publishing: anyio.CapacityLimiter = field(init=False)
    uploads: Counter[str] = field(default_factory=Counter, init=False)
    checks: dict[asyncio.Task[None], anyio.CancelScope] = field(default_factory=dict, init=False)
    merging: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    shadows: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    applied: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine.stats, self.base.name, self.settings.max_running)
        vocabulary = self.tokenizer.get_vocab()
        self.tokens = TokenBytes(self.tokenizer, vocabulary)
        # A text longer than this has more tokens than the context holds, whatever it says.
        self.max_prompt_chars = self.engine.max_model_len * max(map(len, vocabulary), default=1)
        # One at a time each: tokenizing so that a long prompt takes one core at most, and publishing
        # because checking an adapter may read its whole file into memory.
        self.tokenizing = anyio.CapacityLimiter(1)
        self.publishing = anyio.CapacityLimiter(1)

    @cached_property
    def access(self) -> Access:
        """Who may call; a key that is made or revoked counts at once."""
        return Access(self.registry.keys, self.settings.admin_key)

    @cached_property
    def budgets(self) -> Budgets:
        """What each tenant uses of this process."""
        return Budgets(self.registry.tenants.quota)

    @property
    def status(self) -> Literal["ok", "draining", "failed"]:
        """What `/health` says."""
        if not self.engine.stats().healthy:
            return "failed"
        return "draining" if self.draining else "ok"


def get_context(request: Request) -> ServerContext:
    """The context of the application that got this request."""
    return cast(ServerContext, request.app.state.context)


def get_open_context(request: Request) -> ServerContext:
    """The same for routes that start new work: while draining they answer 503."""
    context = get_context(request)
    if context.draining:
        raise draining()
    return context


Context = Annotated[ServerContext, Depends(get_context)]
OpenContext = Annotated[ServerContext, Depends(get_open_context)]
