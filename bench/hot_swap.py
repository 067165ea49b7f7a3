"""What publishing costs: from upload to first token, and the pauses that running requests of others see."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.load import ask, median
from bench.shapes import SHAPES, make_adapter, make_base
from server.spawn import serving

UPLOADS = 12
PAUSE = 1.0  # seconds between two uploads


@dataclass(frozen=True, slots=True)
class Gaps:
    """Seconds between two tokens of the running requests."""

    median: float
    p99: float
    worst: float


def measure_hot_swap(shape: str, work: Path, *, clients: int, rank: int, threads: int = 0) -> dict[str, Any]:
    """Base requests run all the time; in the second half adapters are uploaded and asked in turn."""
    base = make_base(shape, work / shape / "base")
    folders = [make_adapter(base, work / shape / f"r{rank}-{i}", rank, i) for i in range(UPLOADS)]
    flags = ["--model", str(base), "--served-model-name", "base", "--adapter-memory-gb", "4"]
    flags += ["--data-dir", str(work / shape / f"swap-{time.time_ns()}"), "--threads", str(threads)]
    with serving(flags, work / "server.log") as url:
        return asyncio.run(_run(url, folders, clients, SHAPES[shape][1]["vocab_size"]))


async def _run(url: str, folders: list[Path], clients: int, vocabulary: int) -> dict[str, Any]:
    stamps: list[list[float]] = []
    stop = asyncio.Event()
    async with httpx.AsyncClient(timeout=600) as client:

        async def keep_asking(number: int) -> None:
            turn = 0
            while not stop.is_set():
                prompt = [3 + (number * 977 + turn * 131 + i * 17) % (vocabulary - 3) for i in range(16)]
                stamps.append((await ask(client, url, "base", prompt, 64))[1:])
                turn += 1

        asking = [asyncio.create_task(keep_asking(number)) for number in range(clients)]
        await asyncio.sleep(5)  # warm
        quiet_from = time.perf_counter()
        await asyncio.sleep(UPLOADS * PAUSE)
        quiet_until = time.perf_counter()
        waits, bare = [], []
        for number, folder in enumerate(folders):
            waits.append(await _upload_and_ask(client, url, f"new{number}", folder))
            bare.append(await _time_first_token(client, url, f"new{number}"))
            await asyncio.sleep(PAUSE)
        busy_until = time.perf_counter()
        stop.set()
        await asyncio.gather(*asking)
    size = (folders[0] / "adapter_model.safetensors").stat().st_size
    return {
        "adapter MiB": round(size / 2**20, 1),
        "quiet": asdict(_gaps(stamps, quiet_from, quiet_until)),
        "while publishing": asdict(_gaps(stamps, quiet_until, busy_until)),
        "upload to first token": median(waits),
        "first token of the same adapter once more": median(bare),
    }


async def _upload_and_ask(client: httpx.AsyncClient, url: str, name: str, folder: Path) -> float:
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


def _gaps(stamps: list[list[float]], start: float, stop: float) -> Gaps:
    gaps = sorted(
        later - earlier
        for answer in stamps
        for earlier, later in itertools.pairwise(answer)
        if start <= earlier and later <= stop
    )
    return Gaps(median(gaps), gaps[int(0.99 * (len(gaps) - 1))], gaps[-1])
