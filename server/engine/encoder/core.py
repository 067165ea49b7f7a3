"""The step of an encoder's engine: schedule, encode, answer. Every request is answered in one step."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from adapters.errors import AdapterError
from adapters.residency import Residency
from server.engine.core import EngineConfig, Results
from server.engine.encoder.answers import answers, check_answers
from server.engine.encoder.model import EncoderModel
from server.engine.encoder.scheduler import EncoderScheduler
from server.engine.encoder.sequence import HEAD_TASKS, EncoderSequence
from server.engine.request import EngineError, PoolingRequest, QueueFull, Request
from server.engine.stats import EngineStats, MergeStats

log = logging.getLogger(__name__)
_FAILURES = 3  # passes that may fail in a row before the engine counts as broken


class EncoderCore:
    """What `EngineCore` is for decoders; `Engine` runs it in the same way."""

    def __init__(self, model: EncoderModel, residency: Residency, config: EngineConfig) -> None:
        """Of `config`, what is about KV and prefixes has no meaning here."""
        self.model = model
        self.config = config
        self.residency = residency
        self.max_model_len = config.max_model_len
        self.vocab_size = model.vocab_size
        self.scheduler = EncoderScheduler(
            residency, max_batch_tokens=config.max_batch_tokens, max_running=config.max_running
        )
        self._live: dict[str, EncoderSequence] = {}
        self._failures = 0
        self._steps = 0
        self._prompt_tokens = 0
        self._parts = {"schedule": 0.0, "forward": 0.0, "sample": 0.0}

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
        if not isinstance(request, PoolingRequest):
            raise ValueError("an encoder generates nothing")
        if request.invocation:
            raise ValueError("an encoder does not serve adapters that are invoked by tokens")
        if not 1 <= len(request.prompt) <= self.max_model_len:
            raise ValueError(f"{len(request.prompt)} tokens do not fit into {self.max_model_len}")
        task = HEAD_TASKS.get(request.task)
        if request.adapter is None and task is not None and task != self.model.spec.task:
            raise ValueError(f"the base by itself has no head for {task}")
        if request.request_id in self._live:
            raise ValueError(f"request id {request.request_id} is in use")
        if len(self.scheduler.queue) >= self.config.max_waiting:
            raise QueueFull(f"{self.config.max_waiting} requests wait already; try again later")
        sequence = self._live[request.request_id] = EncoderSequence(request)
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Drop a request in whatever state; unknown ids (already answered) are fine."""
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

    def close(self) -> None:
        """End the background threads."""
        self.residency.close()

    def step(self) -> Results:
        """Run one pass. Returns its answers; empty if nothing could run yet."""
        started = time.perf_counter()
        planned, failed = self.scheduler.schedule()
        results: Results = []
        for sequence, error in failed:
            del self._live[sequence.request.request_id]
            results.append((sequence.request.request_id, error))
        sequences = [sequence for sequence in planned if self._accept(sequence, results)]
        self._parts["schedule"] += time.perf_counter() - started
        if sequences:
            try:
                results += self._run(sequences)
                self._failures = 0
            except Exception:
                log.exception("a pass failed; its requests are answered with an error")
                self._failures += 1
                broken = EngineError("the engine failed while this request ran; see the server's log")
                results += [(sequence.request.request_id, broken) for sequence in sequences]
            for sequence in sequences:
                self.abort(sequence.request.request_id)
        return results

    def _accept(self, sequence: EncoderSequence, results: Results) -> bool:
        """Whether the adapter can do what is asked; if not, the error goes to `results`."""
        try:
            check_answers(self.model, sequence)
        except AdapterError as error:
            self.abort(sequence.request.request_id)
            results.append((sequence.request.request_id, error))
            return False
        return True

    def _run(self, sequences: list[EncoderSequence]) -> Results:
        started = time.perf_counter()
        padded = self.model.pad(
            [sequence.request.prompt for sequence in sequences], [sequence.adapter for sequence in sequences]
        )
        hidden = self.model.encode(padded)
        computed = time.perf_counter()
        outputs = answers(self.model, sequences, hidden, padded.mask)
        self._steps += 1
        self._prompt_tokens += sum(sequence.length for sequence in sequences)
        self._parts["forward"] += computed - started
        self._parts["sample"] += time.perf_counter() - computed
        return [(output.request_id, output) for output in outputs]

    def check(self) -> None:
        """Raise `AssertionError` if anything is lost: leases, sequences."""
        self.scheduler.check()
        if {*self.scheduler.running, *self.scheduler.queue.waiting()} != set(self._live.values()):
            raise AssertionError("the live sequences are not those that wait or run")

    def stats(self, *, healthy: bool = True) -> EngineStats:
        """The counters of now."""
        scheduler, residency = self.scheduler, self.residency
        running = {s.request.adapter for s in scheduler.running if s.request.adapter}
        waiting = {adapter for adapter in scheduler.queue.waiting_adapters if adapter}
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.queue),
            kv_blocks_used=0,
            kv_blocks_total=0,
            prefix_queries=0,
            prefix_hits=0,
            preemptions=0,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=0,
            steps=self._steps,
            step_seconds=sum(self._parts.values()),
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
            merge=MergeStats(),
            healthy=healthy and self._failures < _FAILURES,
            tenants=scheduler.queue.tenant_stats(),
            adapters_loaded=residency.loaded(),
            pins=residency.pins,
        )
