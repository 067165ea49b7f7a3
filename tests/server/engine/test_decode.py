"""Decode steps get graphs on a GPU whose model can be captured; every other way works without."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from server.engine import decode
from server.engine.attention import KVCache
from server.engine.cuda import graphs
from server.engine.decode import DecodePath, choose_decode
from tests.kit import Families


def _choose(families: Families) -> DecodePath | None:
    model = families("llama").model
    cache = KVCache(16, torch.float32, model.device)
    return choose_decode(model, cache, block_size=4, max_rows=2, max_length=8)


def test_there_is_none_on_the_cpu(families: Families) -> None:
    assert _choose(families) is None


def test_graphs_on_a_gpu(families: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int]] = []

    path = object()

    def note(model: Any, cache: Any, **sizes: int) -> object:
        asked.append(sizes)
        return path

    monkeypatch.setattr(decode, "has_kernels", lambda device: True)
    monkeypatch.setattr(graphs, "GraphedDecode", note)
    assert _choose(families) is path
    assert asked == [{"block_size": 4, "max_rows": 2, "max_length": 8}]


def test_a_model_that_can_not_be_captured_is_served_without(
    families: Families, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **sizes: int) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(decode, "has_kernels", lambda device: True)
    monkeypatch.setattr(graphs, "GraphedDecode", fail)
    with caplog.at_level(logging.WARNING):
        assert _choose(families) is None
    assert "not permitted when stream is capturing" in caplog.text
