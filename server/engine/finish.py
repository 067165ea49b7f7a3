"""The end of a step: from logits to tokens, their scores and text, and whether a sequence ends with them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from server.engine.plans import Sampler
from server.engine.request import FinishReason, GenerationOutput, TokenLogprob
from server.engine.sampler import stop_ids
from server.engine.sequence import Sequence


def append_tokens(
    sampler: Sampler, logits: Tensor, sequences: list[Sequence], end_tokens: frozenset[int]
) -> list[GenerationOutput]:
    """Choose the next token of each sequence and append it. `logits`: `(sequences, vocabulary)`.

    A sequence whose output has a `finish_reason` is over; one with `max_tokens` 0 is over without a token.
    """
    chosen = sampler.sample(logits, sequences, end_tokens)
    scores = _scores(sampler, logits, sequences, chosen)
    return [
        _append(sequence, token, scores.get(row), end_tokens)
        for row, (sequence, token) in enumerate(zip(sequences, chosen, strict=True))
    ]


def select_rows(logits: Tensor, rows: list[int]) -> Tensor:
    """`logits[rows]`, without a copy where that is all of them."""
    return logits if rows == [*range(logits.shape[0])] else logits[rows]


def _append(
    sequence: Sequence, token: int, scores: list[TokenLogprob] | None, end_tokens: frozenset[int]
) -> GenerationOutput:
    p = sequence.request.sampling
    first = sequence.generated == 0
    prompt = tuple(sequence.prompt_logprobs) if first and p.prompt_logprobs is not None else None
    text: str = ""
    reason: FinishReason | None = "length"
    stop: str | int | None = None
    if p.max_tokens:
        sequence.tokens.append(token)
        text, reason, stop = _advance_text(sequence, token, end_tokens)
    return GenerationOutput(
        sequence.request.request_id,
        text,
        (token,) if p.max_tokens else (),
        tuple(scores) if scores is not None and p.max_tokens else None,
        reason,
        stop,
        prompt,
        (sequence.cached or 0) if first else 0,
    )


def _advance_text(
    sequence: Sequence, token: int, end_tokens: frozenset[int]
) -> tuple[str, FinishReason | None, str | int | None]:
    """New text, and whether and why the sequence ends with `token`."""
    p = sequence.request.sampling
    early = sequence.generated <= p.min_tokens
    if not early and token in stop_ids(p, end_tokens):
        text, stop = sequence.text.finish()
        return text, "stop", token if stop is None else stop
    text, stop = sequence.text.push(token, stops=not early)
    if stop is not None:
        return text, "stop", stop
    if sequence.generated == p.max_tokens:
        more, stop = sequence.text.finish()
        return text + more, "length" if stop is None else "stop", stop
    return text, None, None


def _scores(
    sampler: Sampler, logits: Tensor, sequences: list[Sequence], chosen: list[int]
) -> dict[int, list[TokenLogprob]]:
    """Scores of the chosen tokens by row, for those who asked."""
    tops = {row: top for row, s in enumerate(sequences) if (top := s.request.sampling.logprobs) is not None}
    if not tops:
        return {}
    rows = [*tops]
    found = sampler.logprobs(select_rows(logits, rows), [chosen[row] for row in rows], max(tops.values()))
    return {row: [replace(score, top=score.top[: tops[row]])] for row, score in zip(rows, found, strict=True)}
