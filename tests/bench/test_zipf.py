"""Who asks which adapter."""

from __future__ import annotations

import random
from collections import Counter

from bench.zipf import zipf_clients


def test_in_each_turn_all_adapters_differ() -> None:
    clients = zipf_clients(random.Random(0), 8, 20, 30)

    assert len(clients) == 8
    for turn in zip(*clients, strict=True):
        assert len(set(turn)) == 8
    assert all(name in {f"a{index}" for index in range(20)} for asked in clients for name in asked)


def test_the_second_is_asked_half_as_often_as_the_first() -> None:
    counts = Counter(zipf_clients(random.Random(0), 1, 100, 20_000)[0])

    assert 0.45 < counts["a1"] / counts["a0"] < 0.55
    assert 0.08 < counts["a9"] / counts["a0"] < 0.12
