"""Seconds from the start of the process to a server that answers."""

from __future__ import annotations

import shutil
import time

from bench.rounds import Case, Figures, Rounds, run_rounds
from bench.setting import Bench
from server.spawn import start_server, stop_server

PUBLISHED = 8


def measure_startup(bench: Bench) -> Rounds:
    """Cases `base` and `8 adapters published at start`, files in the page cache."""
    adapters = bench.adapters(PUBLISHED)
    flags = ["--port", "0", "--model", str(bench.base), "--dtype", bench.dtype, "--adapter-memory-gb", "4"]
    publish = [part for name, folder in adapters.items() for part in ("--adapter", f"{name}={folder}")]

    def case(extra: list[str]) -> Case:
        def run(number: int) -> Figures:
            data = bench.folder / "data-startup"
            shutil.rmtree(data, ignore_errors=True)
            started = time.perf_counter()
            process, _ = start_server([*flags, "--data-dir", str(data), *extra], bench.folder / "startup.log")
            ready = time.perf_counter() - started
            stop_server(process)
            return {"ready": ready}

        return run

    return run_rounds({"base": case([]), f"{PUBLISHED} adapters": case(publish)}, bench.repeats, warm=False)
