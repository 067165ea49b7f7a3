"""A long prompt arrives among running answers: how long do they stand still?"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time

import httpx

from bench.load import TIMEOUT, median, random_prompt, stream
from bench.rounds import WARM, Figures, Rounds, run_rounds
from bench.setting import Bench

LONG = 1500
RUNNING = 8
_QUICK_LONG = 200
_SETTLED = 10  # tokens of each running answer before the long prompt comes
_MOST = 2048  # the model's context


def measure_long_prompt(bench: Bench) -> Rounds:
    """Case `base`: the worst gap between two tokens of the running answers, in median decode intervals."""
    long = _QUICK_LONG if bench.quick else LONG

    with bench.serving("long-prompt", {}) as url:

        def run(number: int) -> Figures:
            return asyncio.run(_interrupt(url, bench, 2 * _SETTLED if number == WARM else long, number))

        return run_rounds({"base": run}, bench.repeats)


async def _interrupt(url: str, bench: Bench, long: int, seed: int) -> Figures:
    """Answers run; the long prompt comes; its first token ends it all."""
    generator = random.Random(seed)
    prompts = [random_prompt(generator, bench.prompt_tokens, bench.vocabulary) for _ in range(RUNNING)]
    times: list[list[float]] = [[] for _ in prompts]
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:

        async def run(index: int) -> None:
            most = _MOST - bench.prompt_tokens
            async with contextlib.aclosing(stream(client, url, "base", prompts[index], most)) as tokens:
                async for at in tokens:
                    times[index].append(at)

        running = [asyncio.create_task(run(index)) for index in range(RUNNING)]
        try:
            while any(len(answer) < _SETTLED for answer in times):
                await asyncio.wait(running, timeout=0.01, return_when=asyncio.FIRST_EXCEPTION)
                for task in running:
                    if task.done():
                        task.result()
            arrived = time.perf_counter()
            prompt = random_prompt(generator, long, bench.vocabulary)
            async with contextlib.aclosing(stream(client, url, "base", prompt, 1)) as answer:
                first = await anext(answer)
            await asyncio.sleep(2 * _interval(times, arrived))
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return gaps_of(times, arrived, first)


def gaps_of(times: list[list[float]], arrived: float, first: float) -> Figures:
    """The pauses of running answers while a prompt is computed.

    Args:
        times: when each running answer's tokens came. `arrived`, `first`: when the long prompt was sent, and
            when its first token came.

    Returns:
        `interval`: median seconds between two tokens before the arrival, once all run; `worst_gap`: the
        longest pause that overlaps the prompt; `steps`: the one in units of the other; `first_token`.
    """
    pairs = [pair for answer in times for pair in itertools.pairwise(answer)]
    worst = max(
        (after - before for before, after in pairs if after > arrived and before < first), default=0.0
    )
    interval = _interval(times, arrived)
    return {
        "interval": interval,
        "worst_gap": worst,
        "steps": worst / interval,
        "first_token": first - arrived,
    }


def _interval(times: list[list[float]], arrived: float) -> float:
    """Median seconds between two tokens when all answers ran and the long prompt had not come."""
    all_run = max(answer[0] for answer in times)
    pairs = [pair for answer in times for pair in itertools.pairwise(answer)]
    return median([after - before for before, after in pairs if before >= all_run and after <= arrived])
