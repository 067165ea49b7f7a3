"""What publishing costs: from upload to first token, and the pauses that running requests of others see."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from pathlib import Path

import httpx

from bench.load import TIMEOUT, ask, median, random_prompt
from bench.rounds import Figures, Rounds
from bench.setting import Bench

UPLOADS = 12
_QUICK_UPLOADS = 2
_PAUSE = 1.0  # seconds between two uploads
_WARM = 5.0  # seconds
_PROMPT, _TOKENS = 16, 64


def measure_hot_swap(bench: Bench) -> Rounds:
    """Base requests run all the time; in the second half adapters are uploaded and asked in turn.

    Cases `upload` (a round is one adapter), and `quiet` and `while publishing` (pauses between two tokens).
    """
    folders = list(bench.adapters(_QUICK_UPLOADS if bench.quick else UPLOADS).values())
    with bench.serving("hot-swap", {}) as url:
        done = asyncio.run(_run(url, bench, folders))
    size = (folders[0] / "adapter_model.safetensors").stat().st_size
    done.notes.append(f"adapter files of {size / 2**20:.1f} MiB, uploaded while {bench.clients} requests run")
    return done


async def _run(url: str, bench: Bench, folders: list[Path]) -> Rounds:
    stamps: list[list[float]] = []
    stop = asyncio.Event()
    generator = random.Random(0)
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:

        async def keep_asking() -> None:
            while not stop.is_set():
                prompt = random_prompt(generator, _PROMPT, bench.vocabulary)
                stamps.append((await ask(client, url, "base", prompt, _TOKENS))[1:])

        asking = [asyncio.create_task(keep_asking()) for _ in range(bench.clients)]
        await asyncio.sleep(_WARM)
        quiet_from = time.perf_counter()
        await asyncio.sleep(len(folders) * _PAUSE)
        quiet_until = time.perf_counter()
        uploads: list[Figures] = []
        for number, folder in enumerate(folders):
            first = await _upload_and_ask(client, url, f"new{number}", folder)
            again = await _time_first_token(client, url, f"new{number}")
            uploads.append({"round": number, "first_token": first, "first_token_again": again})
            await asyncio.sleep(_PAUSE)
        busy_until = time.perf_counter()
        stop.set()
        await asyncio.gather(*asking)
    return Rounds(
        {
            "upload": uploads,
            "quiet": [{"round": 0, **gaps(stamps, quiet_from, quiet_until)}],
            "while publishing": [{"round": 0, **gaps(stamps, quiet_until, busy_until)}],
        }
    )


async def _upload_and_ask(client: httpx.AsyncClient, url: str, name: str, folder: Path) -> float:
    """Seconds from sending the files to the first token."""
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    started = time.perf_counter()
    answer = await client.post(f"{url}/v1/adapters", data={"name": name}, files=files)
    answer.raise_for_status()
    await ask(client, url, name, [5, 6, 7], 1)
    return time.perf_counter() - started


async def _time_first_token(client: httpx.AsyncClient, url: str, name: str) -> float:
    times = await ask(client, url, name, [5, 6, 8], 1)
    return times[1] - times[0]


def gaps(stamps: list[list[float]], start: float, stop: float) -> Figures:
    """Seconds between two tokens of the answers, of those gaps that lie between `start` and `stop`."""
    found = sorted(
        later - earlier
        for answer in stamps
        for earlier, later in itertools.pairwise(answer)
        if start <= earlier and later <= stop
    )
    if not found:
        raise RuntimeError("no two tokens came while pauses were measured")
    return {"median": median(found), "p99": found[int(0.99 * (len(found) - 1))], "worst": found[-1]}
