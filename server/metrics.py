"""What the server counts, for Prometheus: `multilora_*`, and the few names of vLLM that gateways read."""

from __future__ import annotations

import time
from collections import Counter as Bag
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from adapters.registry.names import DEFAULT_TENANT
from server.collector import MAX_LABELS, StatsCollector
from server.engine.request import GenerationOutput, PoolingTask, Request
from server.engine.stats import EngineStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
OTHER = "other"
_NAMES = 4096  # names of adapters to remember
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
        self._names: OrderedDict[str, str] = OrderedDict()
        self._tenants: set[str] = set()
        self.requests = self._counter("requests", "Finished requests", ["adapter", "outcome"])
        self.uploads = self._counter("adapter_uploads", "Adapters sent to the API", ["outcome"])
        self.tenant_prompts = self._counter("tenant_prompt_tokens", "Prompt tokens of a tenant", ["tenant"])
        self.tenant_tokens = self._counter(
            "tenant_generation_tokens", "Tokens generated for a tenant", ["tenant"]
        )
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
        self.training_running = Gauge(
            "multilora_training_running",
            "Training jobs that a process has, to check their data or to train",
            ["work"],
            registry=self.registry,
        )
        self.training_jobs = self._counter("training_jobs", "Training jobs that ended", ["outcome"])
        self.training_steps = self._counter("training_steps", "Optimizer steps of training jobs", [])
        self.training_deaths = self._counter(
            "training_deaths", "Processes that trained and ended before their jobs", []
        )
        self.registry.register(StatsCollector(stats, model, max_running, self))

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(f"multilora_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"multilora_{name}_seconds", text, buckets=buckets, registry=self.registry)

    def render(self) -> bytes:
        """The text that `/metrics` answers."""
        return generate_latest(self.registry)

    def count(self, adapter: str, outcome: str) -> None:
        """One request is over: `success`, `aborted`, `rejected` or `error`."""
        self.requests.labels(self.label(adapter), outcome).inc()

    def shadow(self, adapter: str, outcome: str) -> None:
        """A copy for a shadow version is over: `success`, `skipped`, `aborted` or `error`."""
        self.shadows.labels(self.label(adapter), outcome).inc()

    def shadow_answer(self, adapter: str, same: bool) -> None:
        """Whether a greedy copy gave the tokens of the answer itself."""
        self.agreement.labels(self.label(adapter), "same" if same else "different").inc()

    def label(self, adapter: str) -> str:
        """The `adapter` label of a ref."""
        return self._capped(self._labels, adapter)

    def tenant_label(self, tenant: str) -> str:
        """The `tenant` label of a tenant."""
        return self._capped(self._tenants, tenant or DEFAULT_TENANT)

    def tenant_labels(self) -> set[str]:
        """All that there were so far."""
        return {*self._tenants}

    def _capped(self, known: set[str], name: str) -> str:
        if name not in known:
            if len(known) >= self._max_labels:
                return OTHER
            known.add(name)
        return name

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
        self.named(digest, name)

    def release(self, digest: str, name: str) -> None:
        """The counterpart of `hold`."""
        names = self._active.get(digest, Bag())
        names[name] -= 1
        if names[name] <= 0:
            del names[name]
        if not names:
            self._active.pop(digest, None)

    def named(self, digest: str, name: str) -> None:
        """An adapter that was asked or is wanted, so that it can be shown by name while it is in memory."""
        self._names[digest] = name
        self._names.move_to_end(digest)
        if len(self._names) > _NAMES:
            self._names.popitem(last=False)

    def name(self, digest: str) -> str:
        """The last name of an adapter, or the beginning of its digest."""
        return self._names.get(digest, digest[:12])

    def active_names(self, digests: Iterable[str]) -> list[str]:
        """The names by which requests in flight asked for these digests."""
        return sorted({name for digest in digests for name in self._active.get(digest, ())})


class RequestTimer:
    """Times the sequences of one HTTP request and counts it once."""

    def __init__(self, metrics: Metrics, adapter: str, requests: Sequence[Request]) -> None:
        self._metrics, self._adapter = metrics, adapter
        self._started = time.perf_counter()
        self._last: list[float | None] = [None] * len(requests)
        self._prompts = [len(request.prompt) for request in requests]
        tenant = metrics.tenant_label(requests[0].tenant if requests else "")
        self._prompt_tokens = metrics.tenant_prompts.labels(tenant)
        self._new_tokens = metrics.tenant_tokens.labels(tenant)
        self.outcome = "aborted"
        self._closed = False

    def record(self, index: int, output: GenerationOutput) -> None:
        """One output of sequence `index` has come."""
        now, last = time.perf_counter(), self._last[index]
        if output.token_ids:
            self._new_tokens.inc(len(output.token_ids))
            if last is None:
                self._prompt_tokens.inc(self._prompts[index])
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
        self._prompt_tokens.inc(sum(self._prompts))
        self._metrics.whole.observe(time.perf_counter() - self._started)
        self._metrics.pooled.labels(task).inc(len(self._last))

    def close(self) -> None:
        """Count the request under its outcome; safe to call twice."""
        if not self._closed:
            self._metrics.count(self._adapter, self.outcome)
        self._closed = True
