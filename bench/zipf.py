"""Eight active adapters of eight that the server knows, against eight active of a thousand."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.rounds import WARM, Case, Figures, Rounds, run_rounds, say
from bench.setting import Bench
from bench.shapes import make_copies

KNOWN = 1000
QUICK_KNOWN = 24
FEW = 8
TURNS = 4
# Ranks at which a thousand adapters in float32 take about 5 GiB: all of them are to be on the host.
_RANKS = {"135m": 4, "0.5b": 2}
_HOST_GIB = 6
_LOAD_SECONDS = 300


def measure_zipf(bench: Bench) -> Rounds:
    """Cases `8 of 8` and `8 of 1000`, on two servers that both run all the time."""
    known = QUICK_KNOWN if bench.quick else KNOWN
    rank = _RANKS.get(bench.shape, 4)
    say(f"zipf: making {known} adapters of rank {rank}")
    first = bench.adapters(1, rank)["a0"]
    folder = bench.folder / "copies"
    copies = {f"a{number}": path for number, path in enumerate(make_copies(first, folder, known))}
    few = {name: copies[name] for name in list(copies)[:FEW]}
    try:
        with _serving(bench, "few", few) as few_url, _serving(bench, "many", copies) as many_url:
            cases = {
                f"{FEW} of {FEW}": _case(bench, few_url, FEW),
                f"{FEW} of {KNOWN}": _case(bench, many_url, known),
            }
            done = run_rounds(cases, bench.repeats)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    done.notes.append(f"{known} adapters of rank {rank}, all on the host; Zipf with exponent 1")
    return done


@contextmanager
def _serving(bench: Bench, name: str, adapters: dict[str, Path]) -> Iterator[str]:
    """A server with all these adapters in memory."""
    started = time.perf_counter()
    with bench.serving(f"zipf-{name}", adapters, "--adapter-memory-gb", str(_HOST_GIB)) as url:
        deadline = time.monotonic() + _LOAD_SECONDS
        while resident(url) < len(adapters):
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {resident(url)} of {len(adapters)} adapters are in memory")
            time.sleep(0.2)
        say(f"zipf: {len(adapters)} adapters in memory after {time.perf_counter() - started:.0f} seconds")
        yield url


def resident(url: str) -> int:
    """Adapters that the server says are in memory."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    for family in text_string_to_metric_families(text):
        if family.name == "multilora_adapters_resident":
            return int(max(sample.value for sample in family.samples))
    raise RuntimeError("the server does not tell how many adapters are in memory")


def _case(bench: Bench, url: str, known: int) -> Case:
    def run(number: int) -> Figures:
        turns = 1 if number == WARM else TURNS
        return bench.http_case(url, zipf_clients(random.Random(number), FEW, known, turns))(number)

    return run


def zipf_clients(generator: random.Random, clients: int, known: int, turns: int) -> list[list[str]]:
    """For each client the adapters it asks in turn: in each turn all different, drawn by popularity.

    The n-th most popular adapter has a weight of 1/n (Zipf's law with exponent 1).
    """
    rows = []
    for _ in range(turns):
        left = list(range(known))
        drawn = []
        for _ in range(clients):
            chosen = generator.choices(left, [1 / (index + 1) for index in left])[0]
            left.remove(chosen)
            drawn.append(f"a{chosen}")
        rows.append(drawn)
    return [list(column) for column in zip(*rows, strict=True)]
