"""From an adapter's files in the page cache to the form it is computed with, in process."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.child import run_child
from bench.rounds import Figures, Rounds, run_rounds
from bench.setting import Bench
from bench.shapes import cost

FILE_BYTES = 35_000_000
_BYTES = 2  # of a bfloat16 number
_SECONDS = 60


def measure_adapter_load(bench: Bench) -> Rounds:
    """Case `load`: milliseconds of one adapter with a file of about 35 MB."""
    rank = max(1, round(FILE_BYTES / _BYTES / cost(bench.shape).lora))
    folder = bench.adapters(1, bench.rank if bench.quick else rank)["a0"]
    job = {
        "model": str(bench.base),
        "dtype": bench.dtype,
        "data_dir": str(bench.folder / "data-load"),
        "adapter": str(folder),
        "repeats": bench.repeats,
    }
    done = Rounds(**run_child("adapter_load", job, bench.folder))
    size = (folder / "adapter_model.safetensors").stat().st_size
    done.notes.append(f"an adapter file of {size / 1e6:.1f} MB, bfloat16")
    return done


def inside(job: dict[str, Any]) -> dict[str, Any]:
    """The rounds, as a dictionary; runs in the child."""
    from server.launch import load
    from server.settings import Settings

    loaded = load(
        Settings(
            model=job["model"],
            dtype=job["dtype"],
            data_dir=Path(job["data_dir"]),
            adapter_memory_gb=4,
            parity="off",
        )
    )
    residency = loaded.core.residency
    version, _ = loaded.registry.publish_folder("a0", Path(job["adapter"]))
    ready = threading.Event()
    residency.on_ready = ready.set

    def run(number: int) -> Figures:
        if not residency.evict(version.digest):
            raise RuntimeError("the adapter is in use")
        ready.clear()
        started = time.perf_counter()
        residency.prefetch(version.digest)
        if not ready.wait(_SECONDS) or residency.state(version.digest) != "device":
            raise RuntimeError("the adapter was not loaded")
        return {"milliseconds": 1000 * (time.perf_counter() - started)}

    return asdict(run_rounds({"load": run}, max(job["repeats"], 10)))
