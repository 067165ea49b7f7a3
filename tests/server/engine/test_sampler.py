"""The sampler against transformers' own logits processors, and its independence of neighbours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as Rows
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.engine import sampler
from server.engine.detokenize import TextStream
from server.engine.sequence import Sequence
from tests.kit import Letters, ask

PROMPT = [5, 6, 6, 7]
END = frozenset({2})


def _sequence(generated: Rows[int] = (), **sampling: Any) -> Sequence:
    request = ask("x", PROMPT, **{"temperature": 1.0, "seed": 0, **sampling})
    sequence = Sequence(request, "base", 4, TextStream(Letters(), PROMPT))
    sequence.tokens += generated
    return sequence


def _logits(rows: int, vocabulary: int = 96, seed: int = 0, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, vocabulary, generator=generator)


def _draws(logits: Tensor, count: int, **sampling: Any) -> Counter[int]:
    """How often each token is drawn from one row by as many independent seeds."""
    sequences = [_sequence(seed=seed, **sampling) for seed in range(count)]
    return Counter(sampler.sample(logits.expand(count, -1), sequences, END))


def _warped(logits: Tensor, **sampling: Any) -> Tensor:
    """Transformers' distribution for the same parameters."""
    ids = torch.tensor([PROMPT])
    scores = logits[None].clone()
    if "temperature" in sampling:
        scores = TemperatureLogitsWarper(sampling["temperature"])(ids, scores)
    if "top_k" in sampling:
        scores = TopKLogitsWarper(sampling["top_k"])(ids, scores)
    if "top_p" in sampling:
        scores = TopPLogitsWarper(sampling["top_p"])(ids, scores)
    if "min_p" in sampling:
        scores = MinPLogitsWarper(sampling["min_p"])(ids, scores)
    return scores[0].softmax(-1)


def test_greedy_takes_the_most_likely() -> None:
    logits = _logits(3)
    chosen = sampler.sample(logits, [_sequence(temperature=0.0) for _ in range(3)], END)
    assert chosen == logits.argmax(-1).tolist()


TRUNCATIONS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 96},
    {"top_k": 5000},
    {"top_p": 0.05},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.7},
    {"top_k": 20, "min_p": 0.2},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_k": 30, "top_p": 0.9, "min_p": 0.03},
    {"temperature": 2.5, "top_p": 0.8},
    {"temperature": 0.3, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
]


@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
@pytest.mark.parametrize("vocabulary", [96, 3000])
@pytest.mark.parametrize("sampling", TRUNCATIONS, ids=str)
def test_truncation_leaves_what_transformers_leaves(
    sampling: dict[str, Any], vocabulary: int, spread: float
) -> None:
    """The kept ids and their shares, also where the candidates reach beyond the first thousand."""
    row = _logits(1, vocabulary, spread=spread)[0]
    p = _sequence(**sampling).request.sampling
    probabilities = (row / sampling.get("temperature", 1.0)).softmax(-1)
    values, ids = sampler._candidates(probabilities, p)
    expected = _warped(row, **sampling)
    assert set(ids.tolist()) == set(expected.nonzero()[:, 0].tolist())
    assert torch.allclose(values / values.sum(), expected[ids], atol=1e-6)


@pytest.mark.parametrize(
    "sampling", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.5, "top_k": 9}], ids=str
)
def test_draws_follow_the_distribution(sampling: dict[str, Any]) -> None:
    """Chi-square over 4000 draws with fixed seeds; the bound is five standard deviations."""
    logits = _logits(1, 24, spread=1.0)
    count = 4000
    drawn = _draws(logits, count, **sampling)
    expected = count * _warped(logits[0], **sampling).double()
    allowed = expected.nonzero()[:, 0].tolist()
    assert set(drawn) <= set(allowed)
    statistic = sum(
        (drawn[token] - float(expected[token])) ** 2 / float(expected[token]) for token in allowed
    )
    freedom = len(allowed) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_a_seed_gives_the_same_tokens_whatever_runs_beside_it() -> None:
    rows = _logits(40, seed=3)
    alone_sequence = _sequence(seed=7)
    alone = [sampler.sample(row[None], [alone_sequence], END)[0] for row in rows]
    together_sequence = _sequence(seed=7)
    others = [_sequence(seed=1), _sequence(temperature=0.0), _sequence(top_k=3, logit_bias={4: 9.0}, seed=7)]
    together = []
    for step, row in enumerate(rows):
        company = others[: step % 4]
        batch = torch.cat([_logits(len(company), seed=step), row[None]])
        together.append(sampler.sample(batch, [*company, together_sequence], END)[-1])
    assert together == alone
    assert len(set(alone)) > 10


def test_different_seeds_and_none_differ() -> None:
    rows = _logits(20, spread=0.5)

    def answer(seed: int | None) -> tuple[int, ...]:
        sequence = _sequence(seed=seed)
        return tuple(sampler.sample(row[None], [sequence], END)[0] for row in rows)

    answers = {answer(seed) for seed in (1, 2, 3, None, None)}
    assert len(answers) == 5


def test_a_tiny_temperature_is_greedy() -> None:
    logits = _logits(4)
    for temperature in (1e-3, 1e-20, 1e-42, 5e-324):
        chosen = sampler.sample(logits, [_sequence(temperature=temperature) for _ in range(4)], END)
        assert chosen == logits.argmax(-1).tolist()


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    generated = [9, 5, 11]
    logits = _logits(1)
    row = logits[0].clone()
    sampler._shape(row, _sequence(generated, repetition_penalty=penalty), END)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    assert torch.equal(row, processor(torch.tensor([PROMPT + generated]), logits.clone())[0])


def test_frequency_and_presence_follow_the_formula_over_generated_tokens() -> None:
    generated = [9, 9, 9, 30]
    row = _logits(1)[0]
    expected = row.clone()
    for token, count in ((9, 3), (30, 1)):
        expected[token] -= 0.7 * count + 0.4
    sampler._shape(row, _sequence(generated, frequency_penalty=0.7, presence_penalty=0.4), END)
    assert torch.allclose(row, expected)


def test_logit_bias_is_added() -> None:
    logits = _logits(1)
    worst = int(logits.argmin())
    biased = _sequence(temperature=0.0, logit_bias={worst: 100.0})
    assert sampler.sample(logits, [biased], END) == [worst]
    banned = _sequence(logit_bias={int(logits.argmax()): -100.0})
    assert int(logits.argmax()) not in [sampler.sample(logits, [banned], END)[0] for _ in range(50)]


def test_the_end_is_banned_before_min_tokens() -> None:
    logits = _logits(1)
    logits[0, 2] = logits[0, 40] = 50.0
    logits[0, 41] = 40.0
    greedy = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": frozenset({40}), "ignore_eos": False}
    chosen = [sampler.sample(logits, [_sequence([9] * n, **greedy)], END)[0] for n in range(4)]
    assert chosen == [41, 41, 2, 2]


def test_ignoring_the_end_leaves_own_stop_tokens() -> None:
    p = _sequence(stop_token_ids=frozenset({40}), ignore_eos=True).request.sampling
    assert sampler.stop_ids(p, END) == {40}
    p = _sequence(stop_token_ids=frozenset({40}), ignore_eos=False).request.sampling
    assert sampler.stop_ids(p, END) == {2, 40}


def test_an_end_token_beyond_the_logits_is_no_error() -> None:
    """A tokenizer may know an end token that the model has no row for."""
    sequence = _sequence(temperature=0.0, min_tokens=3, ignore_eos=False)
    logits = _logits(1)
    assert sampler.sample(logits, [sequence], frozenset({2, 9999})) == [int(logits.argmax())]


def test_shaping_one_row_leaves_the_given_logits_and_the_other_rows() -> None:
    logits = _logits(2)
    before = logits.clone()
    shaped = _sequence([9], temperature=0.0, repetition_penalty=9.0, logit_bias={3: 50.0}, min_tokens=4)
    chosen = sampler.sample(logits, [shaped, _sequence(temperature=0.0)], END)
    assert torch.equal(logits, before)
    assert chosen == [3, int(before[1].argmax())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_log_softmax(dtype: torch.dtype) -> None:
    logits = _logits(3).to(dtype)
    scores = sampler.logprobs(logits, [1, 2, 3], 4)
    logs = torch.log_softmax(logits.double(), -1)
    for row, score in enumerate(scores):
        assert score.token_id == row + 1
        assert score.logprob == pytest.approx(float(logs[row, row + 1]), abs=1e-5)
        values, ids = logs[row].topk(4)
        assert [token for token, _ in score.top] == ids.tolist()
        assert [logprob for _, logprob in score.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_more_alternatives_than_tokens_are_all_of_them() -> None:
    assert len(sampler.logprobs(_logits(1, 5), [0], 20)[0].top) == 5
    assert sampler.logprobs(_logits(1, 5), [0], 0)[0].top == ()


def test_a_row_of_nan_spares_the_others() -> None:
    logits = _logits(3)
    clean = logits.clone()
    logits[1] = math.nan
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.5}, {"top_k": 4}, {"min_p": 0.3}, {"temperature": 0.0}]
    for sampling in kinds:
        chosen = sampler.sample(logits, [_sequence(**sampling) for _ in range(3)], END)
        expected = sampler.sample(clean, [_sequence(**sampling) for _ in range(3)], END)
        assert (chosen[0], chosen[2]) == (expected[0], expected[2])
        assert 0 <= chosen[1] < 96
