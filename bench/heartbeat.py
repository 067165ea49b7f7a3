"""How late the server's event loop is while many clients stream: its own timer, read from /metrics."""

from __future__ import annotations

import math

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.rounds import Figures, Rounds, run_rounds
from bench.setting import WIDE, Bench

METRIC = "multilora_event_loop_lag_seconds"
TARGET = 0.01
Histogram = dict[float, float]
"""Observations up to and including each bound, in seconds."""


def measure_heartbeat(bench: Bench) -> Rounds:
    """Case `base, 32 clients`: the bound below which the longest delay of a timer lies, in each round."""
    with bench.serving("heartbeat", {}) as url:
        if not read_histogram(_metrics(url)):
            return Rounds(notes=[f"skipped: this server has no metric {METRIC}"])
        load = bench.http_case(url, [["base"]] * WIDE)

        def run(number: int) -> Figures:
            before = read_histogram(_metrics(url))
            figures = load(number)
            return {**delays(before, read_histogram(_metrics(url))), **figures}

        return run_rounds({"base, 32 clients": run}, bench.repeats)


def _metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=60).text


def read_histogram(text: str) -> Histogram:
    """The lag histogram of a `/metrics` page; empty if there is none."""
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{METRIC}_bucket"
    }


def delays(before: Histogram, after: Histogram) -> Figures:
    """What a histogram gained.

    Returns:
        `beats`: observations; `late`: those above 10 ms; `longest`: the bound of the last bucket that gained
        any, in seconds; twice the greatest bound if a delay lies above all.
    """
    gained = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    beats = gained.pop(math.inf)
    longest = min((bound for bound, count in gained.items() if count >= beats), default=2 * max(gained))
    within = max((count for bound, count in gained.items() if bound <= TARGET), default=0.0)
    return {"beats": beats, "late": beats - within, "longest": longest}
