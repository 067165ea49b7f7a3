"""Chosen tokens become outputs: text, scores for those who asked, and the end of a sequence."""

from __future__ import annotations

from typing import Any

import torch

from server.engine import sampler
from server.engine.detokenize import TextStream
from server.engine.finish import append_tokens, select_rows
from server.engine.sequence import Sequence
from tests.kit import Letters, ask, letters


def _sequence(name: str, **sampling: Any) -> Sequence:
    request = ask(name, [3, 4], **sampling)
    p = request.sampling
    return Sequence(request, "base", 8, TextStream(Letters(), request.prompt, p.stop, p.include_stop))


def _logits(*best: int) -> torch.Tensor:
    logits = torch.zeros(len(best), 8)
    logits[range(len(best)), list(best)] = 1.0
    return logits


def test_each_sequence_gets_its_own_token_text_and_scores() -> None:
    plain, scored = _sequence("plain"), _sequence("scored", logprobs=1)
    outputs = append_tokens(sampler, _logits(5, 6), [plain, scored], frozenset())
    assert [output.token_ids for output in outputs] == [(5,), (6,)]
    assert [output.text for output in outputs] == [letters([5]), letters([6])]
    assert [output.finish_reason for output in outputs] == [None, None]
    assert outputs[0].logprobs is None
    assert outputs[1].logprobs is not None
    (score,) = outputs[1].logprobs
    assert (score.token_id, score.top) == (6, ((6, score.logprob),))
    assert plain.tokens == [3, 4, 5]


def test_ends_are_told_with_their_reason() -> None:
    ends = frozenset({5})
    ended = _sequence("a", ignore_eos=False)
    limited = _sequence("b", max_tokens=1)
    stopped = _sequence("c", stop=(letters([6]),))
    early = _sequence("d", ignore_eos=False, min_tokens=2, logit_bias={5: 100.0})
    outputs = append_tokens(sampler, _logits(5, 6, 6, 5), [ended, limited, stopped, early], ends)
    reasons = [(output.finish_reason, output.stop_reason) for output in outputs]
    assert reasons == [("stop", 5), ("length", None), ("stop", letters([6])), (None, None)]
    assert [output.text for output in outputs[:3]] == ["", letters([6]), ""]


def test_a_request_for_no_tokens_gets_none() -> None:
    (output,) = append_tokens(sampler, _logits(5), [_sequence("x", max_tokens=0)], frozenset())
    assert (output.token_ids, output.text, output.finish_reason) == ((), "", "length")


def test_all_rows_are_taken_as_they_are() -> None:
    logits = _logits(1, 2, 3)
    assert select_rows(logits, [0, 1, 2]) is logits
    assert torch.equal(select_rows(logits, [2, 0]), logits[[2, 0]])
