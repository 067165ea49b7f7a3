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
_LIVE = "live"
_USERS = 2  # clients of the adapter whose versions are published


def measure_hot_swap(bench: Bench) -> Rounds:
    """Requests on the base and on one adapter run all the time; in the second half new versions of that
    adapter are uploaded, each is asked at once, and it must be the one that answers.

    Cases `upload` (a round is one version), and `quiet` and `while publishing`: the pauses between two tokens
    of the base's answers, which are those of everybody else.
    """
    first, *folders = bench.adapters(1 + (_QUICK_UPLOADS if bench.quick else UPLOADS)).values()
    with bench.serving("hot-swap", {_LIVE: first}) as url:
        done = asyncio.run(_run(url, bench, folders))
    size = (first / "adapter_model.safetensors").stat().st_size
    done.notes.append(
        f"adapter files of {size / 2**20:.1f} MiB, uploaded as new versions of an adapter that {_USERS} "
        f"clients ask, while {bench.clients} ask the base"
    )
    return done


async def _run(url: str, bench: Bench, folders: list[Path]) -> Rounds:
    stamps: list[list[float]] = []
    stop = asyncio.Event()
    generator = random.Random(0)
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:

        async def keep_asking(model: str) -> None:
            while not stop.is_set():
                prompt = random_prompt(generator, _PROMPT, bench.vocabulary)
                times = await ask(client, url, model, prompt, _TOKENS)
                if model == "base":
                    stamps.append(times[1:])

        models = ["base"] * bench.clients + [_LIVE] * _USERS
        asking = [asyncio.create_task(keep_asking(model)) for model in models]
        await asyncio.sleep(_WARM)
        quiet_from = time.perf_counter()
        await asyncio.sleep(len(folders) * _PAUSE)
        quiet_until = time.perf_counter()
        uploads: list[Figures] = []
        for number, folder in enumerate(folders):
            started = time.perf_counter()
            version = await _upload(client, url, folder)
            first = await _ask_at_once(client, url, version) - started
            asked = time.perf_counter()
            again = await _ask_at_once(client, url, version) - asked
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


async def _upload(client: httpx.AsyncClient, url: str, folder: Path) -> str:
    """Publish a new version; returns its ref."""
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    answer = await client.post(f"{url}/v1/adapters", data={"name": _LIVE}, files=files)
    answer.raise_for_status()
    ref: str = answer.json()["id"]
    return ref


async def _ask_at_once(client: httpx.AsyncClient, url: str, version: str) -> float:
    """When one token of the adapter, by its bare name, was there.

    Raises:
        RuntimeError: another version answered.
    """
    body = {"model": _LIVE, "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0}
    answer = await client.post(f"{url}/v1/completions", json=body)
    answer.raise_for_status()
    if answer.json()["model"] != version:
        raise RuntimeError(f"{answer.json()['model']} answered after {version} was published")
    return time.perf_counter()


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
