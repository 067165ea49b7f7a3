"""The engine's numbers in Prometheus' form, read when someone asks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.tier import LoadedAdapter, TierName
from server.engine.stats import EngineStats

MAX_LABELS = 512
"""Adapters and tenants with series of their own; the rest share `other`, so that many can't fill memory."""
_LEVELS: dict[TierName, str] = {"device": "gpu", "host": "cpu"}


class Names(Protocol):
    """What digests and tenants are called."""

    def active_names(self, digests: Iterable[str]) -> list[str]: ...

    def name(self, digest: str) -> str: ...

    def tenant_label(self, tenant: str) -> str: ...

    def tenant_labels(self) -> set[str]: ...


class StatsCollector(Collector):
    """The engine's numbers, read when someone asks."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        model: str,
        max_running: int,
        names: Names,
    ) -> None:
        self._stats, self._model, self._max_running, self._names = stats, model, max_running, names

    def describe(self) -> Iterable[Metric]:
        """Nothing to describe beforehand; without this, registering would already read the engine."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Both families of names, from one snapshot."""
        stats = self._stats()
        yield from engine_metrics(stats)
        yield from tenant_metrics(stats, self._names)
        yield from gateway_metrics(
            stats,
            self._model,
            self._max_running,
            self._names.active_names(stats.adapters_running),
            self._names.active_names(stats.adapters_waiting),
        )
        yield loaded_adapters(stats.adapters_loaded, self._names)


def engine_metrics(stats: EngineStats) -> Iterator[Metric]:
    """`multilora_*`."""
    pinned = sum(adapter.pinned and adapter.tier == "device" for adapter in stats.adapters_loaded)
    gauges: dict[str, tuple[str, float]] = {
        "requests_running": ("Sequences that run", stats.running),
        "requests_waiting": ("Sequences that wait", stats.waiting),
        "kv_blocks_used": ("KV blocks held by live sequences", stats.kv_blocks_used),
        "kv_blocks": ("KV blocks in all", stats.kv_blocks_total),
        "merged_bytes": ("Memory of the automatically merged copy", stats.merge.nbytes),
        "adapter_budget_bytes": ("Memory that adapters may take", stats.adapter_budget_bytes),
        "adapters_pinned": ("Pinned adapters that are on the device", pinned),
        "adapters_pinned_missing": ("Pinned adapters that are not, for now", stats.pins - pinned),
        "engine_healthy": ("1 while the engine runs", int(stats.healthy)),
    }
    counters: dict[str, tuple[str, float]] = {
        "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache", stats.prefix_queries),
        "prefix_cache_hits": ("Prompt tokens found in the prefix cache", stats.prefix_hits),
        "preemptions": ("Sequences set back for want of KV or for fairness", stats.preemptions),
        "fairness_preemptions": (
            "Sequences set back for a tenant or adapter below its share",
            stats.fairness_preemptions,
        ),
        "prompt_tokens": ("Prompt tokens computed", stats.prompt_tokens),
        "generation_tokens": ("Tokens generated", stats.generated_tokens),
        "steps": ("Forward passes", stats.steps),
        "step_seconds": ("Time spent in steps", stats.step_seconds),
        "adapter_loads": ("Adapters loaded into memory", stats.adapter_loads),
        "adapter_evictions": ("Adapters put out of memory", stats.adapter_evictions),
        "merge_builds": ("Merged copies built automatically", stats.merge.builds),
        "merge_build_seconds": ("Time from the begin to the end of these builds", stats.merge.seconds),
        "adapter_load_seconds": ("Time spent loading adapters", stats.adapter_load_seconds),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(f"multilora_{name}", text, value=value)
    for name, (text, value) in counters.items():
        yield CounterMetricFamily(f"multilora_{name}", text, value=value)
    parts = CounterMetricFamily(
        "multilora_step_part_seconds", "Time spent in the parts of steps", labels=["part"]
    )
    for part, seconds in stats.step_parts.items():
        parts.add_metric([part], seconds)
    yield parts
    merged = GaugeMetricFamily("multilora_merged_adapter", "1 for the adapter merged now", labels=["digest"])
    if stats.merge.digest is not None:
        merged.add_metric([stats.merge.digest[:12]], 1)
    yield merged
    tiers = {
        "adapters_resident": ("Adapters in memory", stats.adapters_device, stats.adapters_host),
        "adapter_bytes": ("Memory of adapters", stats.adapter_bytes_device, stats.adapter_bytes_host),
    }
    for name, (text, device, host) in tiers.items():
        family = GaugeMetricFamily(f"multilora_{name}", text, labels=["tier"])
        family.add_metric(["device"], device)
        family.add_metric(["host"], host)
        yield family


def tenant_metrics(stats: EngineStats, names: Names) -> Iterator[Metric]:
    """What runs and waits for each tenant; those that were seen before have a zero."""
    running: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    for tenant, own in stats.tenants.items():
        running[names.tenant_label(tenant)] += own.running
        waiting[names.tenant_label(tenant)] += own.waiting
    for name, text, counts in (
        ("running", "Sequences of a tenant that run", running),
        ("waiting", "Sequences of a tenant that wait", waiting),
    ):
        family = GaugeMetricFamily(f"multilora_tenant_requests_{name}", text, labels=["tenant"])
        for label in sorted({*names.tenant_labels(), *counts}):
            family.add_metric([label], counts[label])
        yield family


def gateway_metrics(
    stats: EngineStats, model: str, max_running: int, running: list[str], waiting: list[str]
) -> Iterator[Metric]:
    """vLLM's names, which inference gateways route by."""
    usage = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
    for name, text, value in (
        ("num_requests_running", "Sequences that run", stats.running),
        ("num_requests_waiting", "Sequences that wait", stats.waiting),
        ("kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1", usage),
    ):
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name", "engine"])
        family.add_metric([model, "0"], value)
        yield family
    labels = ["max_lora", "waiting_lora_adapters", "running_lora_adapters"]
    info = GaugeMetricFamily("vllm:lora_requests_info", "Adapters in use, at this time", labels=labels)
    # Every running sequence may have an adapter of its own, so that is how many there can be at once.
    info.add_metric([str(max_running), ",".join(waiting), ",".join(running)], time.time())
    yield info


def loaded_adapters(loaded: Sequence[LoadedAdapter], names: Names) -> Metric:
    """The name that vLLM's gateways are to route by: the pinned ones, and of the others the last to come."""
    family = GaugeMetricFamily(
        "vllm:lora_adapter_loaded",
        "1 for each adapter in memory",
        labels=["adapter_name", "level", "pinned", "rank"],
    )
    shown = sorted(loaded, key=lambda adapter: adapter.pinned)[-MAX_LABELS:]
    series = {
        (names.name(adapter.digest), _LEVELS[adapter.tier], str(adapter.pinned).lower(), str(adapter.rank)): 1
        for adapter in shown
    }
    for labels, value in series.items():
        family.add_metric(labels, value)
    return family
