"""The engine's step: schedule, run, finish. Synchronous and single-threaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from adapters.errors import AdapterError
from adapters.residency import Residency
from server.engine.base import ServedModel
from server.engine.decode import choose_decode
from server.engine.detokenize import Decoder, TextStream
from server.engine.finish import append_tokens, select_rows
from server.engine.kv import BlockPool
from server.engine.merging import Merger
from server.engine.plans import choose_sampler
from server.engine.pooling import PoolingSequence, pooling_outputs
from server.engine.request import (
    EngineError,
    GenerationOutput,
    GenerationRequest,
    PoolingOutput,
    QueueFull,
    Request,
)
from server.engine.runner import Runner, Scored
from server.engine.scheduler import Plan, Scheduler
from server.engine.sequence import PagedSequence, Sequence
from server.engine.stats import EngineStats, MergeStats

Result = GenerationOutput | PoolingOutput | AdapterError | EngineError
Results = list[tuple[str, Result]]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of one engine. `kv_blocks` blocks of `block_size` tokens each."""

    max_model_len: int
    kv_blocks: int
    block_size: int = 16
    max_batch_tokens: int = 512
    max_running: int = 64
    max_waiting: int = 1024
    prefix_cache: bool = True


class EngineCore:
    """Everything between a request's tokens and its answer, one step at a time."""

    def __init__(
        self,
        model: ServedModel,
        decoder: Decoder,
        residency: Residency,
        config: EngineConfig,
        end_tokens: frozenset[int] = frozenset(),
    ) -> None:
        """Takes the KV cache's memory.

        Raises:
            ValueError: a request of the greatest length would find no room even when alone.
        """
        if config.max_model_len > config.kv_blocks * config.block_size:
            raise ValueError(
                f"max_model_len is {config.max_model_len}, but {config.kv_blocks} KV blocks of "
                f"{config.block_size} hold fewer tokens"
            )
        self.model = model
        self.config = config
        self.residency = residency
        self.pool = BlockPool(config.kv_blocks, config.block_size)
        self.scheduler = Scheduler(
            self.pool,
            residency,
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            prefix_cache=config.prefix_cache,
        )
        self.runner = Runner(model, config.kv_blocks, config.block_size)
        self.runner.decode = choose_decode(
            model,
            self.runner.cache,
            block_size=config.block_size,
            max_rows=config.max_running,
            max_length=config.max_model_len,
        )
        self.sampler = choose_sampler(model.device)
        self.merger: Merger | None = None
        self._decoder = decoder
        self._end_tokens = end_tokens
        self._live: dict[str, PagedSequence] = {}
        self._failed: Results = []
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._steps = 0
        self._step_seconds = 0.0
        self._parts = {"schedule": 0.0, "forward": 0.0, "sample": 0.0}

    @property
    def max_model_len(self) -> int:
        return self.config.max_model_len

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def busy(self) -> bool:
        return bool(self._live)

    @property
    def occupancy(self) -> tuple[int, int]:
        """How many sequences run, and how many wait."""
        running = len(self.scheduler.running)
        return running, len(self._live) - running

    @property
    def steps(self) -> int:
        """Forward passes so far."""
        return self._steps

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            QueueFull: too many wait already.
            ValueError: it can't ever fit, its id is taken, or this base can't do what it asks.
        """
        needed = len(request.prompt)
        if isinstance(request, GenerationRequest):
            needed += request.sampling.max_tokens
        if not request.prompt or needed > self.config.max_model_len:
            raise ValueError(f"{needed} tokens do not fit into {self.config.max_model_len}")
        if request.request_id in self._live:
            raise ValueError(f"request id {request.request_id} is in use")
        if len(self.scheduler.queue) >= self.config.max_waiting:
            raise QueueFull(f"{self.config.max_waiting} requests wait already; try again later")
        sequence = self._sequence(request)
        self._live[request.request_id] = sequence
        self.scheduler.add(sequence)

    def _sequence(self, request: Request) -> PagedSequence:
        digest, block_size = self.model.spec.serving_digest, self.config.block_size
        if isinstance(request, GenerationRequest):
            p = request.sampling
            text = TextStream(self._decoder, request.prompt, p.stop, p.include_stop)
            return Sequence(request, digest, block_size, text)
        if not self.model.pools:
            raise ValueError("this base does not show its last hidden states")
        if request.adapter is None and request.task != "embed":
            raise ValueError("the base by itself has no head to classify with")
        pad_token = self.model.model.config.get_text_config().pad_token_id
        return PoolingSequence(request, digest, block_size, pad_token)

    def abort(self, request_id: str) -> None:
        """Drop a request in whatever state; unknown ids (already finished) are fine."""
        sequence = self._live.pop(request_id, None)
        if sequence is not None:
            self.scheduler.remove(sequence)

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
        if self.merger is not None:
            self.merger.forget(digest)

    def close(self) -> None:
        """End the background threads."""
        self.residency.close()
        if self.merger is not None:
            self.merger.close()

    def step(self) -> Results:
        """Run one step. Returns what it added to each sequence; empty if nothing could run yet."""
        started = time.perf_counter()
        plan, failed = self.scheduler.schedule()
        for sequence, error in failed:
            del self._live[sequence.request.request_id]
            self._failed.append((sequence.request.request_id, error))
        results: Results = []
        if plan:
            results += self._run(plan, started)
            self._account(plan, time.perf_counter() - started)
        # Kept until here: if this step broke, the next one tells of them.
        results += self._failed
        self._failed = []
        return results

    def _run(self, plan: Plan, started: float) -> Results:
        if self.merger is not None:
            self.runner.merged_digest = self.merger.choose(self.scheduler.queue.adapters)
        scheduled = time.perf_counter()
        try:
            logits, scored = self.runner.run(plan)
        finally:
            self.model.batch.end()
        computed = time.perf_counter()
        self._steps += 1
        self._prompt_tokens += sum(tokens for sequence, tokens in plan.items() if not sequence.decoding)
        self.scheduler.advance(plan)
        results = self._finish(logits, scored) + self._finish_pooling(plan)
        self._parts["schedule"] += scheduled - started
        self._parts["forward"] += computed - scheduled
        self._parts["sample"] += time.perf_counter() - computed
        return results

    def _finish(self, logits: Tensor, scored: list[Scored]) -> Results:
        """Sample, record and deliver."""
        for rows in scored:
            self._score_prompt(logits, rows)
        sampling = [rows for rows in scored if rows.samples]
        if not sampling:
            return []
        last = select_rows(logits, [rows.stop - 1 for rows in sampling])
        outputs = append_tokens(self.sampler, last, [rows.sequence for rows in sampling], self._end_tokens)
        for output in outputs:
            self._generated_tokens += len(output.token_ids)
            if output.finish_reason is not None:
                self.abort(output.request_id)
        return [(output.request_id, output) for output in outputs]

    def _finish_pooling(self, plan: Plan) -> Results:
        """The answers of the prompts that are computed now."""
        done = [s for s in plan if isinstance(s, PoolingSequence) and not s.remaining]
        if not done:
            return []
        outputs = pooling_outputs(done)
        for output in outputs:
            self.abort(output.request_id)
        return [(output.request_id, output) for output in outputs]

    def _score_prompt(self, logits: Tensor, rows: Scored) -> None:
        """Scores of the prompt tokens that this chunk predicts: all but the first of the prompt."""
        sequence = rows.sequence
        top = sequence.request.sampling.prompt_logprobs
        known = len(sequence.prompt_logprobs)
        if top is None or known >= sequence.prompt_length:
            return
        # After a preemption the prompt is computed again from its start: rows that were scored come twice.
        first = rows.start + known - 1 - (sequence.computed - (rows.stop - rows.start))
        count = min(rows.stop - first, sequence.prompt_length - known)
        if count > 0:
            targets = sequence.tokens[known : known + count]
            sequence.prompt_logprobs += self.sampler.logprobs(logits[first : first + count], targets, top)

    def _account(self, plan: Plan, seconds: float) -> None:
        self._step_seconds += seconds
        prefill = sum(tokens for tokens in plan.values() if tokens > 1)
        if self.merger is not None:
            self.merger.record(sum(plan.values()), 0 if prefill else len(plan), seconds)
        self.scheduler.pacer.record(sum(tokens == 1 for tokens in plan.values()), prefill, seconds)

    def check(self) -> None:
        """Raise `AssertionError` if anything is lost: blocks, leases, sequences."""
        self.scheduler.check()
        known = {*self.scheduler.running, *self.scheduler.queue.waiting()}
        if known != set(self._live.values()):
            raise AssertionError("the live sequences are not those that wait or run")

    def stats(self, *, healthy: bool = True) -> EngineStats:
        """The counters of now."""
        scheduler, residency = self.scheduler, self.residency
        running = {s.request.adapter for s in scheduler.running if s.request.adapter}
        waiting = {adapter for adapter in scheduler.queue.waiting_adapters if adapter}
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.queue),
            kv_blocks_used=self.pool.used,
            kv_blocks_total=self.pool.total,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            steps=self._steps,
            step_seconds=self._step_seconds,
            step_parts={**self._parts},
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
            merge=MergeStats() if self.merger is None else self.merger.stats(),
            healthy=healthy,
            fairness_preemptions=scheduler.places.preemptions,
            tenants=scheduler.queue.tenant_stats(),
            adapters_loaded=residency.loaded(),
            pins=residency.pins,
        )
