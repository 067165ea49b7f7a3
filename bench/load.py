"""A bounded load on one server of this machine: clients that each ask one thing after another."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Seconds and rates of one load.

    Attributes:
        tokens_per_second: generated tokens over the whole wall time, prompts included in it.
        first_token: median seconds from sending a request to its first token.
        between_tokens: median seconds between two tokens of a request.
        worst_gap: the longest pause between two tokens of any request.
    """

    tokens_per_second: float
    first_token: float
    between_tokens: float
    worst_gap: float


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0


async def ask(
    client: httpx.AsyncClient, url: str, model: str, prompt: Sequence[int], tokens: int
) -> list[float]:
    """One streamed completion of exactly `tokens` tokens; the arrival time of each, after the start time."""
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    times = [time.perf_counter()]
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()[:200]}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise RuntimeError(chunk["error"])
                if chunk["choices"]:
                    times.append(time.perf_counter())
    return times


async def run_load(
    url: str,
    clients: Sequence[Sequence[str]],
    *,
    prompt_tokens: int,
    new_tokens: int,
    vocabulary: int,
    seed: int = 0,
) -> LoadResult:
    """Run one client for each entry of `clients`, which lists the model names it asks in turn."""
    generator = random.Random(seed)
    prompts = [
        [[generator.randrange(3, vocabulary) for _ in range(prompt_tokens)] for _ in names]
        for names in clients
    ]
    limits = httpx.Limits(max_connections=len(clients) + 1)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one(names: Sequence[str], asked: list[list[int]]) -> list[list[float]]:
            return [
                await ask(client, url, name, prompt, new_tokens)
                for name, prompt in zip(names, asked, strict=True)
            ]

        started = time.perf_counter()
        answers = await asyncio.gather(*(one(n, p) for n, p in zip(clients, prompts, strict=True)))
        wall = time.perf_counter() - started
    times = [answer for client_answers in answers for answer in client_answers]
    gaps = [later - earlier for answer in times for earlier, later in itertools.pairwise(answer[1:])]
    return LoadResult(
        len(times) * new_tokens / wall,
        median([answer[1] - answer[0] for answer in times]),
        median(gaps),
        max(gaps, default=0.0),
    )
