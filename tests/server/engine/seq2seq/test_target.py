"""A target's own tokens, and the room that it reserves."""

from __future__ import annotations

from server.engine.detokenize import TextStream
from server.engine.seq2seq.target import Target
from tests.kit import Letters, ask
from tests.server.engine.seq2seq.stand import START


def _target(source: list[int], max_tokens: int) -> Target:
    request = ask("x", source, "a", tenant="s", max_tokens=max_tokens)
    return Target(request, START, "base", 8, TextStream(Letters(), ()))


def test_the_source_is_no_part_of_its_tokens() -> None:
    target = _target([5, 6, 7], 4)
    assert target.source == (5, 6, 7)
    assert target.tokens == [START]
    assert target.generated == 0
    assert target.turn == ("s", "a")
    assert target.memory is None


def test_it_reserves_all_that_it_may_need_at_once() -> None:
    target = _target([5] * 13, 12)
    assert target.room == 25
    assert target.blocks_for(1) == target.blocks_for(100) == 4
    target.blocks = [0, 1, 2, 3]
    assert target.blocks_for(12) == 0
