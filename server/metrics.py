"""What the server counts, for Prometheus: `multilora_*`, and the few names of vLLM that gateways read."""

from __future__ import annotations

import time
from collections import Counter as Bag
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from server.engine.request import GenerationOutput, PoolingTask, Request
from server.engine.stats import EngineStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
MAX_LABELS = 512
"""Adapter refs with series of their own; the rest share `other`, so that many adapters can't fill memory."""
OTHER = "other"
_AT_ONCE = 60.0  # seconds: an adapter that is asked later shows how long nobody asked
FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
LOOP_LAG = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25)
WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class _Registry(CollectorRegistry):
    """Without the `..._created` series, which nobody here reads; the library can only drop them globally."""

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class Metrics:
    """The counters of one server, in a registry of their own: two servers in a process don't mix."""

    def __init__(
        self, stats: Callable[[], EngineStats], model: str, max_running: int, max_labels: int = MAX_LABELS
    ) -> None:
        self.registry = _Registry()
        self._labels: set[str] = set()
        self._max_labels = max_labels
        self._active: dict[str, Bag[str]] = {}
        self.requests = self._counter("requests", "Finished requests", ["adapter", "outcome"])
        self.uploads = self._counter("adapter_uploads", "Adapters sent to the API", ["outcome"])
        self.pooled = self._counter("pooled_inputs", "Inputs that were embedded or classified", ["task"])
        self.shadows = self._counter(
            "shadow_requests", "Copies of requests for shadow versions", ["adapter", "outcome"]
        )
        self.agreement = self._counter(
            "shadow_agreement",
            "Greedy answers of shadow versions beside those they copy",
            ["adapter", "answer"],
        )
        self.unknown = self._counter("unknown_model_requests", "Requests that named no live model", [])
        self.refused_keys = self._counter("refused_keys", "Requests without a valid API key", ["reason"])
        self.first_token = self._histogram("time_to_first_token", "Until the first token", FIRST_TOKEN)
        self.between = self._histogram("inter_token_latency", "Between two tokens", BETWEEN_TOKENS)
        self.whole = self._histogram("request_duration", "Until the last token", WHOLE)
        self.loop_lag = self._histogram(
            "event_loop_lag", "How late a timer of the event loop is, 50 times a second", LOOP_LAG
        )
        self.adapter_first_token = self._histogram(
            "adapter_first_token",
            "From the upload of an adapter to its first token, where it is asked at once",
            FIRST_TOKEN,
        )
        self._new: OrderedDict[str, float] = OrderedDict()
        self.startup = Gauge(
            "multilora_startup_seconds",
            "From the start of the process until it was ready, by part",
            ["part"],
            registry=self.registry,
        )
        self.registry.register(StatsCollector(stats, model, max_running, self.active_names))

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"multilora_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"multilora_{name}_seconds", text, buckets=buckets, registry=self.registry)

    def render(self) -> bytes:
        """The text that `/metrics` answers."""
        return generate_latest(self.registry)

    def count(self, adapter: str, outcome: str) -> None:
        """One request is over: `success`, `aborted`, `rejected` or `error`."""
        self.requests.labels(self._label(adapter), outcome).inc()

    def shadow(self, adapter: str, outcome: str) -> None:
        """A copy for a shadow version is over: `success`, `skipped`, `aborted` or `error`."""
        self.shadows.labels(self._label(adapter), outcome).inc()

    def shadow_answer(self, adapter: str, same: bool) -> None:
        """Whether a greedy copy gave the tokens of the answer itself."""
        self.agreement.labels(self._label(adapter), "same" if same else "different").inc()

    def _label(self, adapter: str) -> str:
        if adapter not in self._labels:
            if len(self._labels) >= self._max_labels:
                return OTHER
            self._labels.add(adapter)
        return adapter

    def published(self, adapter: str, received: float) -> None:
        """A new version, whose files were received at `received` by `time.perf_counter`."""
        self._new[adapter] = received
        if len(self._new) > self._max_labels:
            self._new.popitem(last=False)

    def first_token_of(self, adapter: str) -> None:
        """A version has given a token. Counts once for each, if it was asked within a minute."""
        received = self._new.pop(adapter, None)
        if received is not None and time.perf_counter() - received < _AT_ONCE:
            self.adapter_first_token.observe(time.perf_counter() - received)

    def unknown_model(self) -> None:
        """The name is no label: anyone can send any number of names."""
        self.unknown.inc()

    def hold(self, digest: str, name: str) -> None:
        """A request on the adapter `name` begins; its digest is all that the engine knows."""
        self._active.setdefault(digest, Bag())[name] += 1

    def release(self, digest: str, name: str) -> None:
        """The counterpart of `hold`."""
        names = self._active.get(digest, Bag())
        names[name] -= 1
        if names[name] <= 0:
            del names[name]
        if not names:
            self._active.pop(digest, None)

    def active_names(self, digests: Iterable[str]) -> list[str]:
        """The names by which requests in flight asked for these digests."""
        return sorted({name for digest in digests for name in self._active.get(digest, ())})


class RequestTimer:
    """Times the sequences of one HTTP request and counts it once."""

    def __init__(self, metrics: Metrics, adapter: str, requests: Sequence[Request]) -> None:
        self._metrics, self._adapter = metrics, adapter
        self._started = time.perf_counter()
        self._last: list[float | None] = [None] * len(requests)
        self.outcome = "aborted"
        self._closed = False

    def record(self, index: int, output: GenerationOutput) -> None:
        """One output of sequence `index` has come."""
        now, last = time.perf_counter(), self._last[index]
        if output.token_ids:
            if last is None:
                self._metrics.first_token.observe(now - self._started)
                self._metrics.first_token_of(self._adapter)
            else:
                self._metrics.between.observe((now - last) / len(output.token_ids))
            self._last[index] = now
        if output.finish_reason is not None:
            self._metrics.whole.observe(now - self._started)

    def pooled(self, task: PoolingTask) -> None:
        """All inputs have their vectors."""
        self.outcome = "success"
        self._metrics.whole.observe(time.perf_counter() - self._started)
        self._metrics.pooled.labels(task).inc(len(self._last))

    def close(self) -> None:
        """Count the request under its outcome; safe to call twice."""
        if not self._closed:
            self._metrics.count(self._adapter, self.outcome)
        self._closed = True


class StatsCollector(Collector):
    """The engine's numbers, read when someone asks."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        model: str,
        max_running: int,
        names: Callable[[Iterable[str]], list[str]],
    ) -> None:
        self._stats, self._model, self._max_running, self._names = stats, model, max_running, names

    def describe(self) -> Iterable[Metric]:
        """Nothing to describe beforehand; without this, registering would already read the engine."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Both families of names, from one snapshot."""
        stats = self._stats()
        yield from engine_metrics(stats)
        yield from gateway_metrics(
            stats,
            self._model,
            self._max_running,
            self._names(stats.adapters_running),
            self._names(stats.adapters_waiting),
        )


def engine_metrics(stats: EngineStats) -> Iterator[Metric]:
    """`multilora_*`."""
    gauges: dict[str, tuple[str, float]] = {
        "requests_running": ("Sequences that run", stats.running),
        "requests_waiting": ("Sequences that wait", stats.waiting),
        "kv_blocks_used": ("KV blocks held by live sequences", stats.kv_blocks_used),
        "kv_blocks": ("KV blocks in all", stats.kv_blocks_total),
        "merged_bytes": ("Memory of the automatically merged copy", stats.merge.nbytes),
        "adapter_budget_bytes": ("Memory that adapters may take", stats.adapter_budget_bytes),
        "engine_healthy": ("1 while the engine runs", int(stats.healthy)),
    }
    counters: dict[str, tuple[str, float]] = {
        "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache", stats.prefix_queries),
        "prefix_cache_hits": ("Prompt tokens found in the prefix cache", stats.prefix_hits),
        "preemptions": ("Sequences set back for want of KV", stats.preemptions),
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
