"""What runs in the next step: decoding sequences first, then prefill chunks, then newcomers in fair turns.

`fairness.py` says who is next, `places.py` who gives way.
"""

from __future__ import annotations

from adapters.errors import AdapterError
from adapters.residency import Residency
from server.engine.fairness import FairQueue
from server.engine.kv import BlockPool
from server.engine.pacing import Pacer
from server.engine.places import Places
from server.engine.sequence import PagedSequence

_PATIENCE = 8  # how often others may pass a sequence that waits for leased adapters to leave
_WORTH_WAITING = 4  # shared blocks for which a newcomer waits, though most of its prompt is its own
_SCORED_CHUNK = 128  # prompt tokens whose logits are computed at once, vocabulary-wide

Plan = dict[PagedSequence, int]
"""For each sequence of a step, how many of its tokens are computed."""


class Scheduler:
    """Owns which sequences wait and run, their KV blocks and their adapter leases."""

    def __init__(
        self,
        pool: BlockPool,
        residency: Residency,
        *,
        max_batch_tokens: int,
        max_running: int,
        prefix_cache: bool,
    ) -> None:
        self.pool = pool
        self.residency = residency
        self.queue = FairQueue()
        self.running: list[PagedSequence] = []
        self.places = Places(pool, self.queue, max_running)
        self.pacer = Pacer(max_batch_tokens)
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running
        self._prefix_cache = prefix_cache

    def add(self, sequence: PagedSequence) -> None:
        """Let a new sequence wait, and begin to load its adapter."""
        self.queue.push(sequence)
        if sequence.request.adapter:
            self.residency.prefetch(sequence.request.adapter)

    def remove(self, sequence: PagedSequence) -> None:
        """A sequence ends, in whatever state: everything it held is free again."""
        if sequence in self.running:
            self._stop(sequence)
        else:
            self.queue.take(sequence)
            self._forget_adapter(sequence.request.adapter)
        self.queue.leave(sequence)

    def _forget_adapter(self, digest: str | None) -> None:
        """The last sequence that waited for an adapter is gone: so is its claim to room."""
        if digest and not self.queue.waits_for(digest):
            self.residency.forget(digest)

    def schedule(self) -> tuple[Plan, list[tuple[PagedSequence, AdapterError]]]:
        """The next step, and the sequences whose adapter could not be loaded (already removed)."""
        plan: Plan = {}
        for sequence in [s for s in self.running if s.decoding]:
            if sequence in self.running and self._grow(sequence, 1, plan):
                self._plan(sequence, 1, plan)
        prompts = len(self.running) - len(plan) + len(self.queue)
        room = self.pacer.prefill_budget(len(plan), prompts)
        room = min(room, self._max_batch_tokens - len(plan))
        for sequence in sorted((s for s in self.running if not s.decoding), key=self.queue.served):
            if sequence in self.running:
                room -= self._prefill(sequence, room, plan)
        return plan, self._admit(room, plan)

    def advance(self, plan: Plan) -> None:
        """The step was computed: make its full blocks findable."""
        self.places.computed(sum(plan.values()))
        for sequence, tokens in plan.items():
            sequence.computed += tokens
            if self._prefix_cache:
                full = sequence.computed // self.pool.block_size
                hashes = sequence.hashes(sequence.computed)
                for index in range(sequence.published, full):
                    self.pool.publish(sequence.blocks[index], hashes[index], sequence.turn)
                sequence.published = full

    def _prefill(self, sequence: PagedSequence, room: int, plan: Plan) -> int:
        tokens = min(sequence.remaining, room)
        if sequence.scores_prompt:
            tokens = min(tokens, _SCORED_CHUNK)
        if tokens <= 0 or not self._grow(sequence, tokens, plan):
            return 0
        self._plan(sequence, tokens, plan)
        return tokens

    def _plan(self, sequence: PagedSequence, tokens: int, plan: Plan) -> None:
        """Charged at once, so that turns alternate among the newcomers of one step too."""
        plan[sequence] = tokens
        self.queue.charge(sequence.turn, tokens)

    def _grow(self, sequence: PagedSequence, tokens: int, plan: Plan) -> bool:
        """Give it blocks for `tokens` more, preempting others. False: it had to go itself."""
        while True:
            blocks = self.pool.allocate(sequence.blocks_for(sequence.computed + tokens))
            if blocks is not None:
                sequence.blocks += blocks
                return True
            victim = self.places.newest_of_largest(self.running)
            plan.pop(victim, None)
            self._preempt(victim)
            if victim is sequence:
                return False

    def _preempt(self, sequence: PagedSequence) -> None:
        """Recompute later: its tokens stay, its KV goes (what is cached of it may be found again)."""
        self.preemptions += 1
        self._stop(sequence)
        self.queue.push_back(sequence)

    def _stop(self, sequence: PagedSequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.published = sequence.denied = 0
        if sequence.adapter is not None:
            self.residency.release(sequence.adapter.digest)
            sequence.adapter = None

    def _admit(self, room: int, plan: Plan) -> list[tuple[PagedSequence, AdapterError]]:
        failed: list[tuple[PagedSequence, AdapterError]] = []
        starved: list[PagedSequence] = []
        for sequence in self.queue.heads() if room > 0 else ():
            givers = self._givers(sequence)
            if givers is None:
                break
            try:
                ready = not self._deferred(sequence) and self._lease(sequence)
            except AdapterError as error:
                self.remove(sequence)
                failed.append((sequence, error))
                continue
            if not ready:
                if sequence.request.adapter and self.residency.lacks_room(sequence.request.adapter):
                    if sequence.passed_over >= _PATIENCE:
                        break
                    starved.append(sequence)
                continue
            for waiting in starved:
                waiting.passed_over += 1
            for giver in givers:
                room += plan.pop(giver, 0)
                self.places.set_back(giver)
                self._preempt(giver)
            self._start(sequence)
            room -= self._prefill(sequence, room, plan)
            if room <= 0:
                break
        return failed

    def _givers(self, newcomer: PagedSequence) -> list[PagedSequence] | None:
        """Those who give way so that it can start, maybe nobody; None: it has to wait."""
        blocks = self._blocks_to_start(newcomer)
        if len(self.running) < self._max_running and self.pool.free >= blocks:
            return []
        return self._yielding(newcomer, blocks) or None

    def _yielding(self, newcomer: PagedSequence, blocks: int) -> list[PagedSequence]:
        return self.places.givers(newcomer, blocks, self.running)

    def _blocks_to_start(self, sequence: PagedSequence) -> int:
        """Room for all its tokens and the next one, if it may have a next one."""
        return sequence.blocks_for(min(len(sequence.tokens) + 1, self.pool.total * self.pool.block_size))

    def _lease(self, sequence: PagedSequence) -> bool:
        if sequence.request.adapter:
            placed = self.residency.acquire(sequence.request.adapter)
            if placed is None:
                return False
            try:
                sequence.accept(placed)
            except AdapterError:
                self.residency.release(placed.digest)
                raise
        return True

    def _start(self, sequence: PagedSequence) -> None:
        self.queue.take(sequence)
        self.running.append(sequence)
        if self._prefix_cache and sequence.reusable:
            sequence.blocks = self.pool.match(sequence.hashes(sequence.reusable))
            sequence.published = len(sequence.blocks)
            sequence.computed = len(sequence.blocks) * self.pool.block_size
            if sequence.cached is None:
                self.prefix_queries += len(sequence.tokens)
                self.prefix_hits += sequence.computed
        if sequence.cached is None:
            sequence.cached = sequence.computed
        self.places.resumed(sequence)

    def _deferred(self, sequence: PagedSequence) -> bool:
        """Whether another computes much of what it needs right now, to be shared in a moment."""
        if not self._prefix_cache:
            return False
        wanted = sequence.hashes(sequence.reusable)
        missing = [h for h in wanted if not self.pool.cached(h)]
        if not missing:
            return False
        coming = {
            known
            for other in self.running
            if not other.decoding and other.hashes(other.prompt_length)[:1] == wanted[:1]
            for known in other.hashes(other.prompt_length)[other.published :]
        }
        shared = sum(known in coming for known in missing)
        return shared >= _WORTH_WAITING or 2 * shared > len(missing)

    def check(self) -> None:
        """Raise `AssertionError` if a block or an adapter lease is lost. Meant for idle moments and tests."""
        self.pool.check([sequence.blocks for sequence in self.running])
        leases: dict[str, int] = {}
        for sequence in self.running:
            if sequence.adapter is not None:
                leases[sequence.adapter.digest] = leases.get(sequence.adapter.digest, 0) + 1
        if leases != self.residency.device.leases:
            raise AssertionError("the adapter leases are not those of the running sequences")
