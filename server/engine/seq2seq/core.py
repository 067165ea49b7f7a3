"""The step of an encoder-decoder engine: schedule, encode newcomers, decode one token of each, finish."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from adapters.residency import Residency
from server.engine.core import EngineConfig, Results
from server.engine.detokenize import Decoder, TextStream
from server.engine.finish import append_tokens
from server.engine.kv import BlockPool
from server.engine.plans import choose_sampler
from server.engine.request import GenerationRequest, QueueFull, Request
from server.engine.scheduler import Plan
from server.engine.seq2seq.memory import Memory
from server.engine.seq2seq.model import Seq2SeqModel
from server.engine.seq2seq.scheduler import TargetScheduler
from server.engine.seq2seq.target import Target
from server.engine.stats import EngineStats, MergeStats


@dataclass(slots=True)
class _Counters:
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: {"schedule": 0.0, "forward": 0.0, "sample": 0.0})


class Seq2SeqCore:
    """What `EngineCore` is for decoders; `Engine` runs it in the same way.

    A block of the pool stands for the memory of `block_size` tokens. What is remembered lies in one piece for
    each target, so the blocks are only counted.
    """

    def __init__(
        self,
        model: Seq2SeqModel,
        decoder: Decoder,
        residency: Residency,
        config: EngineConfig,
        end_tokens: frozenset[int] = frozenset(),
    ) -> None:
        """`config.prefix_cache` has no meaning here: a source is encoded as a whole.

        Raises:
            ValueError: a request of the greatest length would find no room even when alone.
        """
        if config.max_model_len > config.kv_blocks * config.block_size:
            raise ValueError(
                f"max_model_len is {config.max_model_len}, but {config.kv_blocks} blocks of "
                f"{config.block_size} hold fewer tokens"
            )
        self.model = model
        self.config = config
        self.residency = residency
        self.max_model_len = config.max_model_len
        self.vocab_size = model.vocab_size
        self.pool = BlockPool(config.kv_blocks, config.block_size)
        self.scheduler = TargetScheduler(
            self.pool,
            residency,
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            prefix_cache=False,
        )
        self.sampler = choose_sampler(model.device)
        self._decoder = decoder
        self._end_tokens = end_tokens
        self._live: dict[str, Target] = {}
        self._failed: Results = []
        self._counters = _Counters()

    @property
    def busy(self) -> bool:
        return bool(self._live)

    @property
    def occupancy(self) -> tuple[int, int]:
        """How many targets run, and how many wait."""
        running = len(self.scheduler.running)
        return running, len(self._live) - running

    @property
    def steps(self) -> int:
        """Steps that computed something so far."""
        return self._counters.steps

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            QueueFull: too many wait already.
            ValueError: it can't ever fit, its id is taken, or such a base can't do what it asks.
        """
        if not isinstance(request, GenerationRequest):
            raise ValueError("an encoder-decoder base only generates")
        p = request.sampling
        if p.prompt_logprobs is not None or not p.max_tokens:
            raise ValueError("an encoder-decoder base does not score its prompt, which is not its own text")
        if request.invocation:
            raise ValueError("an encoder-decoder base does not serve adapters that are invoked by tokens")
        needed = len(request.prompt) + p.max_tokens
        if not request.prompt or needed > self.config.max_model_len:
            raise ValueError(f"{needed} tokens do not fit into {self.config.max_model_len}")
        if request.request_id in self._live:
            raise ValueError(f"request id {request.request_id} is in use")
        if len(self.scheduler.queue) >= self.config.max_waiting:
            raise QueueFull(f"{self.config.max_waiting} requests wait already; try again later")
        text = TextStream(self._decoder, (), p.stop, p.include_stop)
        model, size = self.model, self.config.block_size
        base = model.spec.serving_digest
        target = self._live[request.request_id] = Target(request, model.start, base, size, text)
        self.scheduler.add(target)

    def abort(self, request_id: str) -> None:
        """Drop a request in whatever state; unknown ids (already finished) are fine."""
        target = self._live.pop(request_id, None)
        if target is not None:
            self.scheduler.remove(target)

    def abort_all(self) -> list[str]:
        """Drop every request; returns their ids."""
        ids = list(self._live)
        for request_id in ids:
            self.abort(request_id)
        return ids

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """See `FairQueue.set_weights`."""
        self.scheduler.queue.set_weights(weights)

    def forget(self, digest: str) -> None:
        """An adapter is deleted and no request holds it: give its memory back."""
        self.residency.evict(digest)

    def close(self) -> None:
        """End the background threads."""
        self.residency.close()

    def step(self) -> Results:
        """Run one step. Returns what it added to each target; empty if nothing could run yet."""
        started = time.perf_counter()
        plan, failed = self.scheduler.schedule()
        for sequence, error in failed:
            del self._live[sequence.request.request_id]
            self._failed.append((sequence.request.request_id, error))
        results = self._run(plan, started) if plan else []
        # Kept until here: if this step broke, the next one tells of them.
        results += self._failed
        self._failed = []
        return results

    def _run(self, plan: Plan, started: float) -> Results:
        # Neighbours with the same adapter form long segments.
        targets = sorted(
            (s for s in plan if isinstance(s, Target)), key=lambda target: target.request.adapter or ""
        )
        scheduled = time.perf_counter()
        encoded = self._encode([target for target in targets if target.memory is None])
        logits = self._decode(targets)
        computed = time.perf_counter()
        counters = self._counters
        counters.steps += 1
        counters.prompt_tokens += encoded
        self.scheduler.advance(plan)
        results: Results = []
        for output in append_tokens(self.sampler, logits, [*targets], self._end_tokens):
            counters.generated_tokens += len(output.token_ids)
            if output.finish_reason is not None:
                self.abort(output.request_id)
            results.append((output.request_id, output))
        ended = time.perf_counter()
        for part, seconds in (
            ("schedule", scheduled - started),
            ("forward", computed - scheduled),
            ("sample", ended - computed),
        ):
            counters.parts[part] += seconds
        counters.seconds += ended - started
        self.scheduler.pacer.record(len(targets), encoded, ended - started)
        return results

    def _encode(self, newcomers: list[Target]) -> int:
        """Give them memories of their sources; returns how many tokens these have."""
        if not newcomers:
            return 0
        memories = [
            Memory(self.model.shape, len(target.source), target.room - len(target.source))
            for target in newcomers
        ]
        self.model.encode(
            [target.source for target in newcomers], memories, [target.adapter for target in newcomers]
        )
        for target, memory in zip(newcomers, memories, strict=True):
            target.memory = memory
        return sum(len(target.source) for target in newcomers)

    def _decode(self, targets: list[Target]) -> Tensor:
        memories = [target.memory for target in targets if target.memory is not None]
        return self.model.decode(
            [target.tokens[-1] for target in targets], memories, [target.adapter for target in targets]
        )

    def check(self) -> None:
        """Raise `AssertionError` if anything is lost: blocks, leases, targets."""
        self.scheduler.check()
        known = {*self.scheduler.running, *self.scheduler.queue.waiting()}
        if known != set(self._live.values()):
            raise AssertionError("the live targets are not those that wait or run")

    def stats(self, *, healthy: bool = True) -> EngineStats:
        """The counters of now."""
        scheduler, residency, counters = self.scheduler, self.residency, self._counters
        running = {s.request.adapter for s in scheduler.running if s.request.adapter}
        waiting = {adapter for adapter in scheduler.queue.waiting_adapters if adapter}
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.queue),
            kv_blocks_used=self.pool.used,
            kv_blocks_total=self.pool.total,
            prefix_queries=0,
            prefix_hits=0,
            preemptions=0,
            prompt_tokens=counters.prompt_tokens,
            generated_tokens=counters.generated_tokens,
            steps=counters.steps,
            step_seconds=counters.seconds,
            step_parts={**counters.parts},
            adapters_running=tuple(sorted(running)),
            adapters_waiting=tuple(sorted(waiting)),
            adapters_device=len(residency.device.items),
            adapters_host=len(residency.host.items),
            adapter_bytes_device=residency.device.bytes,
            adapter_bytes_host=residency.host.bytes,
            adapter_budget_bytes=residency.device.budget,
            adapter_loads=residency.loads,
            adapter_evictions=residency.device.evictions,
            adapter_load_seconds=residency.load_seconds,
            merge=MergeStats(),
            healthy=healthy,
            fairness_preemptions=scheduler.places.preemptions,
            tenants=scheduler.queue.tenant_stats(),
            adapters_loaded=residency.loaded(),
            pins=residency.pins,
        )
