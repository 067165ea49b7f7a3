"""What an encoder computes next: newcomers in fair turns, in passes of prompts of about the same length.

A prompt is encoded as a whole, so nothing is left running between two rounds. A round takes as many tokens as
fit into a step, from the turns that were served least; it is cut into passes so that padding stays small.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from adapters.errors import AdapterError
from adapters.residency import Residency
from server.engine.encoder.sequence import EncoderSequence
from server.engine.fairness import FairQueue

Failures = list[tuple[EncoderSequence, AdapterError]]
_PADDING = 0.25  # most of a pass that may be padding
_LITTLE = 64  # tokens: so much padding costs less than one more pass


class EncoderScheduler:
    """Owns which sequences wait and run, and their adapter leases.

    Attributes:
        running: the sequences of the round; each leaves when it is answered.
    """

    def __init__(self, residency: Residency, *, max_batch_tokens: int, max_running: int) -> None:
        self.residency = residency
        self.queue: FairQueue[EncoderSequence] = FairQueue()
        self.running: list[EncoderSequence] = []
        self._passes: deque[list[EncoderSequence]] = deque()
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running

    def add(self, sequence: EncoderSequence) -> None:
        """Let a new sequence wait, and begin to load its adapter."""
        self.queue.push(sequence)
        if sequence.request.adapter:
            self.residency.prefetch(sequence.request.adapter)

    def remove(self, sequence: EncoderSequence) -> None:
        """A sequence ends, in whatever state: its lease goes back."""
        if sequence in self.running:
            self.running.remove(sequence)
            for others in self._passes:
                if sequence in others:
                    others.remove(sequence)
            if sequence.adapter is not None:
                self.residency.release(sequence.adapter.digest)
                sequence.adapter = None
        else:
            self.queue.take(sequence)
            digest = sequence.request.adapter
            if digest and not self.queue.waits_for(digest):
                self.residency.forget(digest)
        self.queue.leave(sequence)

    def schedule(self) -> tuple[list[EncoderSequence], Failures]:
        """The next pass, and the sequences whose adapter could not be loaded (already removed)."""
        failed: Failures = []
        if not self.running:
            self._passes.clear()
            failed = self._admit()
            self._passes.extend(cut(self.running))
        while self._passes and not self._passes[0]:
            self._passes.popleft()
        return (self._passes.popleft() if self._passes else []), failed

    def _admit(self) -> Failures:
        """Start a round. No lease is held now, so that whoever is first finds room for its adapter."""
        failed: Failures = []
        room = self._max_batch_tokens
        for sequence in self.queue.heads():
            if len(self.running) >= self._max_running or (self.running and sequence.length > room):
                break
            try:
                ready = self._lease(sequence)
            except AdapterError as error:
                self.remove(sequence)
                failed.append((sequence, error))
                continue
            if not ready:
                continue
            self.queue.take(sequence)
            self.queue.charge(sequence.turn, sequence.length)
            self.running.append(sequence)
            room -= sequence.length
        return failed

    def _lease(self, sequence: EncoderSequence) -> bool:
        if sequence.request.adapter:
            sequence.adapter = self.residency.acquire(sequence.request.adapter)
            return sequence.adapter is not None
        return True

    def check(self) -> None:
        """Raise `AssertionError` if an adapter lease is lost. Meant for idle moments and tests."""
        leases: dict[str, int] = {}
        for sequence in self.running:
            if sequence.adapter is not None:
                leases[sequence.adapter.digest] = leases.get(sequence.adapter.digest, 0) + 1
        if leases != self.residency.device.leases:
            raise AssertionError("the adapter leases are not those of the running sequences")


def cut(sequences: Iterable[EncoderSequence]) -> list[list[EncoderSequence]]:
    """Passes of sequences of about the same length, in which those of one adapter are neighbours."""
    passes: list[list[EncoderSequence]] = []
    longest = tokens = 0
    for sequence in sorted(sequences, key=lambda sequence: -sequence.length):
        padded = longest * (len(passes[-1]) + 1) if passes else 0
        padding = padded - tokens - sequence.length
        if not passes or padding > max(_LITTLE, _PADDING * padded):
            passes.append([])
            longest, tokens = sequence.length, 0
        passes[-1].append(sequence)
        tokens += sequence.length
    return [sorted(own, key=lambda sequence: sequence.request.adapter or "") for own in passes]
