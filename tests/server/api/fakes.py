"""Small stand-ins for the engine and the registry, and a real byte-level tokenizer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapters.delta import AdapterWeights
from adapters.errors import AdapterNotFound
from adapters.mixture import Mixtures
from server.api.context import ServerContext
from server.api.tokens import byte_level_table
from server.engine.request import (
    GenerationOutput,
    GenerationRequest,
    PoolingOutput,
    PoolingRequest,
    TokenLogprob,
)
from server.engine.stats import EngineStats, MergeStats
from server.settings import Settings
from tests.server.api.fake_registry import BASE, FakeRegistry

__all__ = ["BASE", "FakeRegistry"]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.content == 'refuse me' %}{{ raise_exception('no such thing') }}{% endif %}"
    "<{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STATS = EngineStats(
    running=2,
    waiting=1,
    kv_blocks_used=5,
    kv_blocks_total=20,
    prefix_queries=100,
    prefix_hits=40,
    preemptions=3,
    prompt_tokens=60,
    generated_tokens=70,
    steps=11,
    step_seconds=1.5,
    step_parts={"schedule": 0.125, "forward": 1.25, "sample": 0.125, "deliver": 0.25},
    adapters_running=(),
    adapters_waiting=(),
    adapters_device=2,
    adapters_host=4,
    adapter_bytes_device=1000,
    adapter_bytes_host=3000,
    adapter_budget_bytes=5000,
    adapter_loads=6,
    adapter_evictions=1,
    adapter_load_seconds=0.5,
    merge=MergeStats("abcdef" * 10, 4000, 2, 0.75),
    healthy=True,
)


@cache
def tokenizer() -> Any:
    """One token for each byte, in byte order, then `</s>` (256)."""
    vocabulary = {**byte_level_table(), "</s>": 256}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", chat_template=TEMPLATE)


def tokens(text: str) -> tuple[int, ...]:
    """The ids of `text` in the tokenizer above."""
    return tuple(text.encode())


Script = Callable[[GenerationRequest], Sequence[GenerationOutput | Exception]]


def say(text: str, cached: int = 0) -> Script:
    """Every request answers `text`, a character at a time, cut at its `max_tokens`."""

    def script(request: GenerationRequest) -> list[GenerationOutput]:
        sampling = request.sampling
        chars = list(text)[: sampling.max_tokens]
        outputs = [
            GenerationOutput(
                request.request_id,
                text=char,
                token_ids=tokens(char),
                logprobs=None if sampling.logprobs is None else scores(tokens(char), sampling.logprobs),
            )
            for char in chars
        ] or [GenerationOutput(request.request_id)]
        prompt_logprobs = None
        if sampling.prompt_logprobs is not None:
            prompt_logprobs = (None, *scores(request.prompt[1:], sampling.prompt_logprobs))
        outputs[0] = replace(outputs[0], cached_tokens=cached, prompt_logprobs=prompt_logprobs)
        outputs[-1] = replace(outputs[-1], finish_reason="stop" if len(chars) == len(text) else "length")
        return outputs

    return script


def scores(token_ids: Sequence[int], count: int) -> tuple[TokenLogprob, ...]:
    """Log-probabilities that fall from the chosen token on; the last alternative is impossible."""
    return tuple(
        TokenLogprob(
            token_id,
            -0.5,
            tuple((token_id + i, -math.inf if i and i == count - 1 else -0.5 - i) for i in range(count)),
        )
        for token_id in token_ids
    )


def pooled(request: PoolingRequest) -> PoolingOutput:
    """`(3, 4)` to embed; else the logits of three labels: the first token's units say which one wins."""
    if request.task == "embed":
        return PoolingOutput(request.request_id, ((3.0, 4.0),))
    tokens = request.prompt[:1] if request.task == "classify" else request.prompt
    logits = tuple(tuple(float(token % 3 == label) for label in range(3)) for token in tokens)
    return PoolingOutput(request.request_id, logits)


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/embeddings": {"input": "hi"},
}
"""Routes that answer with what a plain adapter can, and the least that they take beside `model`."""


class FakeEngine:
    """Plays a script for each request, and notes which requests were closed before their end."""

    def __init__(self, script: Script) -> None:
        self.max_model_len = 100
        self.vocab_size = 260
        self.script = script
        self.current = STATS
        self.requests: list[GenerationRequest] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.states: dict[str, str] = {}
        self.prefetched: list[str] = []
        self.weights: dict[str, float] = {}
        self.pinned: set[str] = set()
        self.pooled: Callable[[PoolingRequest], PoolingOutput] = pooled
        self.pooling: list[PoolingRequest] = []
        self.most_pooling = 0
        self.hang = False
        self.started = asyncio.Event()

    async def pool(self, request: PoolingRequest) -> PoolingOutput:
        self.pooling.append(request)
        self.running.add(request.request_id)
        self.most_pooling = max(self.most_pooling, len(self.running))
        try:
            await asyncio.sleep(0)
            if self.hang:
                self.started.set()
                await asyncio.sleep(3600)
            return self.pooled(request)
        except asyncio.CancelledError:
            self.aborted.append(request.request_id)
            raise
        finally:
            self.running.discard(request.request_id)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationOutput, None]:
        self.requests.append(request)
        self.running.add(request.request_id)
        finished = False
        try:
            for output in self.script(request):
                await asyncio.sleep(0)
                if isinstance(output, Exception):
                    finished = True
                    raise output
                finished = output.finish_reason is not None
                if self.hang and finished:
                    finished = False
                    self.started.set()
                    await asyncio.sleep(3600)
                yield output
        finally:
            self.running.discard(request.request_id)
            if not finished:
                self.aborted.append(request.request_id)

    def stats(self) -> EngineStats:
        return self.current

    def residency(self, digest: str) -> str:
        return self.states.get(digest, "disk")

    def prefetch(self, digest: str) -> None:
        self.prefetched.append(digest)

    def pin(self, digests: set[str]) -> None:
        self.pinned = digests

    def set_weights(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)


def _no_files(digest: str) -> AdapterWeights:
    raise AdapterNotFound(digest)


def make_context(data_dir: Path, script: Script | None = None, **settings: object) -> ServerContext:
    """A context on fakes; settings that tests want small are small."""
    small = {
        "max_n": 4,
        "max_logprobs": 3,
        "max_body_mb": 1,
        "max_adapter_mb": 1,
        "allow_host": ("testserver",),
    }
    values: dict[str, Any] = {**small, **settings}
    return ServerContext(
        settings=Settings(data_dir=data_dir, **values),
        base=BASE,
        tokenizer=tokenizer(),
        engine=FakeEngine(script or say("hello")),
        registry=cast(Any, FakeRegistry()),
        mixtures=Mixtures(_no_files, 0),
        started=1_600_000_000.0,
    )
