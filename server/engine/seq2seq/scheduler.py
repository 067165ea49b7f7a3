"""What runs in the next step: a token for each running target, and newcomers, whose sources are encoded."""

from __future__ import annotations

from server.engine.scheduler import Plan, Scheduler
from server.engine.seq2seq.target import Target
from server.engine.sequence import PagedSequence


class TargetScheduler(Scheduler):
    """Blocks are reserved, for source and target together, when a target starts."""

    def _prefill(self, sequence: PagedSequence, room: int, plan: Plan) -> int:
        """A source is encoded at once, however little room there is: its tokens all see each other."""
        assert isinstance(sequence, Target)
        if self._grow(sequence, 1, plan):
            self._plan(sequence, 1, plan)
            self.queue.charge(sequence.turn, len(sequence.source))
        return len(sequence.source)

    def _yielding(self, newcomer: PagedSequence, blocks: int) -> list[PagedSequence]:
        """Nobody: its source would have to be encoded again, and its tokens be decoded one by one."""
        return []
