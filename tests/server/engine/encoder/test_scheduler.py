"""How a round is cut into passes."""

from __future__ import annotations

from server.engine.encoder.scheduler import cut
from server.engine.encoder.sequence import EncoderSequence
from tests.server.engine.encoder.stand import ask


def test_passes_hold_prompts_of_about_the_same_length() -> None:
    def lengths(*given: int) -> list[list[int]]:
        sequences = [EncoderSequence(ask(str(i), [1] * length, "embed")) for i, length in enumerate(given)]
        return [[sequence.length for sequence in own] for own in cut(sequences)]

    assert lengths(5, 40, 30, 9) == [[40, 30, 9], [5]]
    assert lengths(400, 390, 10, 500, 300) == [[500, 400, 390, 300], [10]]
    assert lengths(*[3, 7] * 8) == [[7] * 8 + [3] * 8]
    assert lengths() == []


def test_sequences_of_one_adapter_are_neighbours_in_a_pass() -> None:
    names = ["b", "a", None, "b", "a", None]
    given = [EncoderSequence(ask(str(i), [1] * (9 - i), "embed", name)) for i, name in enumerate(names)]
    (only,) = cut(given)
    assert [sequence.request.adapter for sequence in only] == [None, None, "a", "a", "b", "b"]
