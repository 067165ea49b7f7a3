"""A snapshot of the engine's counters, taken between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.tier import LoadedAdapter


@dataclass(frozen=True, slots=True)
class MergeStats:
    """`digest` of the merged copy there is, or None; its bytes; copies built so far, and how long it took."""

    digest: str | None = None
    nbytes: int = 0
    builds: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TenantStats:
    """Sequences of one tenant."""

    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges are of now; everything else counts from the start of the process.

    Attributes:
        running, waiting: sequences.
        kv_blocks_used: blocks that live sequences hold; cached but unheld blocks count as free.
        prefix_queries, prefix_hits: prompt tokens looked up in and served from the prefix cache.
        prompt_tokens, generated_tokens: tokens computed for prompts (cache hits left out) and sampled.
        steps, step_seconds: forward passes and the time spent in them, scheduling and sampling included.
        step_parts: seconds of the parts that a step has, by name: `schedule` (what runs, and its memory),
            `forward`, `sample` (tokens, scores, text) and `deliver` (to the event loop). A GPU works on while
            `forward` is over already: `sample` waits for it there.
        adapters_running, adapters_waiting: digests that live sequences name.
        adapters_device, adapters_host: adapters in each tier; on the CPU the two tiers are one.
        merge: the automatic merge.
        fairness_preemptions: those of `preemptions` that gave a tenant or an adapter its share.
        tenants: those with live sequences.
        adapters_loaded: each adapter in memory.
        pins: adapters that are to stay on the device, also if they are not there.
        adapter_load_seconds: time spent reading and placing adapters, in the background.
    """

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    step_seconds: float
    step_parts: Mapping[str, float]
    adapters_running: tuple[str, ...]
    adapters_waiting: tuple[str, ...]
    adapters_device: int
    adapters_host: int
    adapter_bytes_device: int
    adapter_bytes_host: int
    adapter_budget_bytes: int
    adapter_loads: int
    adapter_evictions: int
    adapter_load_seconds: float
    merge: MergeStats
    healthy: bool
    fairness_preemptions: int = 0
    tenants: Mapping[str, TenantStats] = field(default_factory=dict)
    adapters_loaded: tuple[LoadedAdapter, ...] = ()
    pins: int = 0
