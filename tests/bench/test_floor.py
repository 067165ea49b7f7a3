"""The floor of a decode step, counted by hand for a tiny shape."""

from __future__ import annotations

import pytest

from bench import floor, shapes

# hidden 8, 3 layers, 2 heads, 1 KV head, intermediate 16, vocabulary 32
SHAPE = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
    "tie_word_embeddings": True,
}
WEIGHTS = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16) + 8 * 32


@pytest.fixture(autouse=True)
def _shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "hand", ("llama", SHAPE))


def test_one_request_is_bound_by_bytes() -> None:
    kv = 2 * 3 * 1 * 4  # keys and values, layers, KV heads, head size
    expected = (2 * WEIGHTS + 4 * 10 * kv) / 1e9
    assert floor.floor_seconds("hand", 1, 10, 2, 4, read_bandwidth=1e9, matrix_rate=1e15) == expected


def test_many_requests_are_bound_by_multiply_adds() -> None:
    attention = 2 * 3 * 2 * 4  # scores and values, layers, heads, head size
    expected = 2 * 32 * (WEIGHTS + 10 * attention) / 1e9
    assert floor.floor_seconds("hand", 32, 10, 2, 4, read_bandwidth=1e15, matrix_rate=1e9) == expected


def test_a_timed_function_sums_up() -> None:
    timed = floor.Timed(lambda x: x + 1)
    assert timed(1) == 2
    assert timed.seconds > 0
