"""The batch sampler against the row by row sampler of the CPU, and against its formulas in float64 numpy."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from server.engine import sampler
from server.engine.cuda import sampling
from server.engine.detokenize import TextStream
from server.engine.sequence import Sequence
from tests.kit import Letters, ask

PROMPT = [5, 6, 6, 7]
END = frozenset({2, 9999})  # the tokenizer knows one that the model has no row for


def _sequence(generated: list[int] | None = None, **parameters: Any) -> Sequence:
    request = ask("x", PROMPT, **{"temperature": 1.0, "seed": 0, "ignore_eos": False, **parameters})
    sequence = Sequence(request, "base", 4, TextStream(Letters(), PROMPT))
    sequence.tokens += generated or []
    return sequence


def _logits(rows: int, vocabulary: int, spread: float = 2.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, vocabulary, generator=generator)


def _random_sampling(chance: random.Random, vocabulary: int) -> dict[str, Any]:
    """Parameters as clients send them, each left at its default half of the time."""
    choices: dict[str, list[Any]] = {
        "temperature": [0.0, 0.3, 0.8, 1.5, 1e-30, 5e-324],
        "top_k": [1, 3, 40, vocabulary, 5000],
        "top_p": [0.01, 0.3, 0.7, 0.95, 0.999],
        "min_p": [0.001, 0.1, 0.5, 1.0],
        "repetition_penalty": [0.7, 1.2, 3.0],
        "frequency_penalty": [-0.5, 0.3, 2.0],
        "presence_penalty": [-0.5, 0.7],
        "logit_bias": [{5: 3.0, 6: -100.0}, {2: 0.5, 20: 7.0}],
        "min_tokens": [1, 3],
        "stop_token_ids": [frozenset({20})],
    }
    return {name: chance.choice(values) for name, values in choices.items() if chance.random() < 0.5}


def _company(seed: int, rows: int, vocabulary: int) -> list[Sequence]:
    chance = random.Random(seed)
    made = []
    for _ in range(rows):
        generated = [chance.randrange(30) for _ in range(chance.randrange(6))]
        made.append(_sequence(generated, seed=chance.randrange(9), **_random_sampling(chance, vocabulary)))
    return made


@pytest.mark.parametrize(
    ("vocabulary", "spread"), [(60, 1.0), (60, 6.0), (1024, 2.0), (3000, 0.3), (3000, 3.0)]
)
def test_a_batch_of_anything_is_what_the_cpu_samples(
    vocabulary: int, spread: float, gpu: torch.device
) -> None:
    for seed in range(12):
        logits = _logits(25, vocabulary, spread, seed)
        expected = sampler.sample(logits, _company(seed, 25, vocabulary), END)
        assert sampling.sample(logits.to(gpu), _company(seed, 25, vocabulary), END) == expected


@pytest.mark.parametrize("rows", [1, 63, 65, 130])
def test_any_number_of_rows(rows: int, gpu: torch.device) -> None:
    logits = _logits(rows, 50)
    expected = sampler.sample(logits, [_sequence(seed=row) for row in range(rows)], END)
    assert sampling.sample(logits.to(gpu), [_sequence(seed=row) for row in range(rows)], END) == expected
    greedy = [_sequence(temperature=0.0) for _ in range(rows)]
    assert sampling.sample(logits.to(gpu), greedy, END) == logits.argmax(-1).tolist()


def test_a_generator_moves_on_by_one_number_a_token(gpu: torch.device) -> None:
    """So that a request may change its sampler between two tokens."""
    one, other = _sequence(top_p=0.99), _sequence(top_p=0.99)
    for row in _logits(30, 2000, 0.2):
        assert sampling.sample(row[None].to(gpu), [one], END) == sampler.sample(row[None], [other], END)
    assert one.random.random() == other.random.random()


def _kept(logits: np.ndarray, p: Any) -> np.ndarray:
    """The distribution after truncation, in float64; among equals the lower id comes first."""
    scaled = logits.astype(np.float64) / p.temperature
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    order = np.lexsort((np.arange(len(shares)), -shares))
    left = shares[order]
    if p.top_k:
        left[p.top_k :] = 0
    renormalised = left / left.sum() if p.top_k else left
    before = np.concatenate([[0.0], np.cumsum(renormalised)[:-1]])
    keep = left >= p.min_p * left[0]
    if p.top_p < 1:
        keep &= before < p.top_p
    keep[0] = True
    result = np.zeros_like(shares)
    result[order] = np.where(keep, left, 0)
    return np.asarray(result / result.sum())


TRUNCATIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"top_k": 6},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"top_k": 12, "top_p": 0.75, "min_p": 0.05, "temperature": 1.4},
]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("parameters", TRUNCATIONS, ids=str)
def test_draws_follow_the_distribution(parameters: dict[str, Any], ties: bool, gpu: torch.device) -> None:
    """Chi-square over 4000 seeds, the bound five standard deviations; what is cut off is never drawn."""
    row = _logits(1, 24, 1.0)
    if ties:
        row = (row * 2).round() / 2
    count = 4000
    sequences = [_sequence(seed=seed, **parameters) for seed in range(count)]
    drawn = Counter(sampling.sample(row.expand(count, -1).to(gpu), sequences, END))
    expected = count * _kept(row[0].numpy(), sequences[0].request.sampling)
    allowed = expected.nonzero()[0].tolist()
    assert set(drawn) <= set(allowed)
    statistic = sum((drawn[token] - expected[token]) ** 2 / expected[token] for token in allowed)
    freedom = len(allowed) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize(
    "parameters", [{"top_k": 3}, {"top_p": 0.25}, {"top_k": 5, "top_p": 0.5}, {"min_p": 1.0}], ids=str
)
def test_among_equals_the_lower_ids_stay(parameters: dict[str, Any], gpu: torch.device) -> None:
    """In a vocabulary of equals, also where there are more of them than candidates."""
    for vocabulary in (12, 3000):
        row = torch.zeros(vocabulary)
        p = _sequence(**parameters).request.sampling
        allowed = _kept(row.numpy(), p).nonzero()[0].tolist()
        sequences = [_sequence(seed=seed, **parameters) for seed in range(200)]
        drawn = sampling.sample(row.expand(200, -1).to(gpu), sequences, END)
        assert set(drawn) <= set(allowed)
        assert len(set(drawn)) > min(2, len(allowed) - 1)


def test_a_row_is_drawn_the_same_in_any_company(gpu: torch.device) -> None:
    rows = _logits(40, 1500, 0.8, seed=3).bfloat16().to(gpu)
    alone_sequence, together_sequence = _sequence(seed=7, top_p=0.97), _sequence(seed=7, top_p=0.97)
    alone = [sampling.sample(row[None], [alone_sequence], END)[0] for row in rows]
    together = []
    for step, row in enumerate(rows):
        others = _company(step, step % 5, 1500)
        batch = torch.cat([_logits(len(others), 1500, seed=step).bfloat16().to(gpu), row[None]])
        together.append(sampling.sample(batch, [*others, together_sequence], END)[-1])
    assert together == alone
    assert len(set(alone)) > 10


def test_the_given_logits_are_left_alone(gpu: torch.device) -> None:
    logits = _logits(2, 40).to(gpu)
    before = logits.clone()
    shaped = _sequence([9], temperature=0.0, repetition_penalty=9.0, logit_bias={3: 50.0}, min_tokens=4)
    assert sampling.sample(logits, [shaped, _sequence(temperature=0.0)], END)[0] == 3
    assert torch.equal(logits, before)


def test_a_row_of_nan_spares_the_others(gpu: torch.device) -> None:
    clean = _logits(3, 96)
    broken = clean.clone()
    broken[1] = math.nan
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.5}, {"top_k": 4}, {"min_p": 0.3}, {"temperature": 0.0}]
    for parameters in kinds:
        chosen = sampling.sample(broken.to(gpu), [_sequence(**parameters) for _ in range(3)], END)
        expected = sampler.sample(clean, [_sequence(**parameters) for _ in range(3)], END)
        assert (chosen[0], chosen[2]) == (expected[0], expected[2])
        assert 0 <= chosen[1] < 96


def test_weights_are_added_without_rounding() -> None:
    """Exact from 1 down to 2**-20."""
    weights = torch.rand(1, 5000).clamp(min=2.0**-20)
    weights[0, 0] = 1.0
    integers = sampling._integers(weights)
    assert torch.equal(integers.double() / 2.0**43, weights.double())
    assert integers.flip(-1).cumsum(-1)[0, -1] == sum(integers[0].tolist())
    assert int(sampling._integers(torch.ones(2**19)).sum()) == 2**62


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top", [0, 4, 100])
def test_logprobs_are_the_cpu_samplers(top: int, dtype: torch.dtype, gpu: torch.device) -> None:
    logits = _logits(3, 50).to(dtype)
    scores = sampling.logprobs(logits.to(gpu), [1, 2, 3], top)
    logs = torch.log_softmax(logits.double(), -1)
    for row, score in enumerate(scores):
        assert score.token_id == row + 1
        assert score.logprob == pytest.approx(float(logs[row, row + 1]), abs=1e-5)
        assert len(score.top) == min(top, 50)
        assert all(logprob == pytest.approx(float(logs[row, i]), abs=1e-5) for i, logprob in score.top)
        values = [logprob for _, logprob in score.top]
        assert values == sorted(values, reverse=True)
        assert len({i for i, _ in score.top}) == len(score.top)
        assert values == pytest.approx(logs[row].topk(min(top, 50)).values.tolist(), abs=1e-5)
