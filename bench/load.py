"""A bounded load on one server of this machine: clients that each ask one thing after another."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import httpx

TIMEOUT = 600.0
"""Seconds that a client waits for the next byte: the slowest peer's first token comes within this."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What each request asks: random prompts of `prompt_tokens`, exactly `new_tokens` greedy tokens."""

    prompt_tokens: int
    new_tokens: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Seconds and rates of one load.

    Attributes:
        tokens_per_second: generated tokens over the whole wall time, prompts included in it.
        first_token: median seconds from sending a request to its first token.
        between_tokens: median over the requests of their mean seconds between two tokens; a client that
            reads several at once does not change it.
        worst_gap: the longest pause between two tokens of any request.
    """

    tokens_per_second: float
    first_token: float
    between_tokens: float
    worst_gap: float


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0


def random_prompt(generator: random.Random, tokens: int, vocabulary: int) -> list[int]:
    """Token ids above the special ones; no two prompts share a beginning, so prefix caches have nothing."""
    return [generator.randrange(3, vocabulary) for _ in range(tokens)]


async def stream(
    client: httpx.AsyncClient, url: str, model: str, prompt: Sequence[int], tokens: int
) -> AsyncGenerator[float, None]:
    """One streamed completion of exactly `tokens` tokens: the arrival time of each chunk with text.

    Raises:
        RuntimeError: the server refused, failed, or generated another number of tokens.
    """
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    generated = 0
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()[:200]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"])
            if chunk.get("usage"):
                generated = chunk["usage"]["completion_tokens"]
            if chunk["choices"]:
                yield time.perf_counter()
    if generated != tokens:
        raise RuntimeError(f"{model} generated {generated} tokens instead of {tokens}")


async def ask(
    client: httpx.AsyncClient, url: str, model: str, prompt: Sequence[int], tokens: int
) -> list[float]:
    """One streamed completion: the start time, then the arrival time of each token."""
    return [time.perf_counter(), *[at async for at in stream(client, url, model, prompt, tokens)]]


async def run_load(url: str, clients: Sequence[Sequence[str]], load: Workload, seed: int = 0) -> LoadResult:
    """Run one client for each entry of `clients`, which lists the model names it asks in turn."""
    generator = random.Random(seed)
    prompts = [
        [random_prompt(generator, load.prompt_tokens, load.vocabulary) for _ in names] for names in clients
    ]
    limits = httpx.Limits(max_connections=len(clients) + 1)
    async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits) as client:

        async def one(names: Sequence[str], asked: list[list[int]]) -> list[list[float]]:
            return [
                await ask(client, url, name, prompt, load.new_tokens)
                for name, prompt in zip(names, asked, strict=True)
            ]

        started = time.perf_counter()
        answers = await asyncio.gather(*(one(n, p) for n, p in zip(clients, prompts, strict=True)))
        wall = time.perf_counter() - started
    times = [answer for client_answers in answers for answer in client_answers]
    gaps = [later - earlier for answer in times for earlier, later in itertools.pairwise(answer[1:])]
    return LoadResult(
        len(times) * load.new_tokens / wall,
        median([answer[1] - answer[0] for answer in times]),
        median([(answer[-1] - answer[1]) / max(1, load.new_tokens - 1) for answer in times]),
        max(gaps, default=0.0),
    )
