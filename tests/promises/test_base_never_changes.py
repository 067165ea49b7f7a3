"""Law 1: the base's weights have their checksum after any loads, merges and unloads."""

from __future__ import annotations

import copy

import pytest
import torch

from adapters.merge import build_merged
from server.engine import merging
from server.engine.base import ServedModel
from server.engine.merging import Merger
from tests.kit import Families, ask, engine_core, prompts, run_all
from tests.promises.world import one_adapter

PROMPT = prompts(12)[0]


def test_loads_merges_and_unloads_leave_the_base_bit_for_bit(families: Families) -> None:
    family = families("llama")
    model = ServedModel(copy.deepcopy(family.stock), name="base", digest="d")
    before = model.checksum()
    with engine_core(family, model=model, budget=one_adapter(family)) as core:
        for adapter in family.adapters:
            build_merged(model.linears.values(), family.weights(adapter))
            core.runner.merged_digest = adapter
            assert run_all(core, [ask("m", PROMPT, adapter)])["m"].tokens == family.expected(
                adapter, PROMPT, 8
            )
            others = [ask(str(other), PROMPT, other) for other in (None, *family.adapters)]
            for request_id, answer in run_all(core, others).items():
                digest = None if request_id == "None" else request_id
                assert answer.tokens == family.expected(digest, PROMPT, 8)
            assert model.checksum() == before
        assert core.stats().adapter_evictions > 0
    for name, layer in model.linears.items():
        assert torch.equal(layer.weight, family.stock.get_submodule(name).weight)


def test_automatic_merges_leave_the_base_bit_for_bit(
    families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "ALONE_SECONDS", 0.0)
    monkeypatch.setattr(merging, "ALONE_TOKENS", 1)
    family = families("llama")
    model = ServedModel(copy.deepcopy(family.stock), name="base", digest="d")
    before = model.checksum()
    with engine_core(family, model=model) as core:
        core.merger = merger = Merger(model, family.weights, "on", 1 << 30)
        for count, adapter in enumerate(family.adapters, start=1):
            while merger.stats().builds < count:
                requests = [ask("m", PROMPT, adapter, max_tokens=30)]
                assert run_all(core, requests)["m"].tokens == family.expected(adapter, PROMPT, 30)
            assert model.checksum() == before
        merger.close()
    assert model.checksum() == before


def test_bfloat16_survives_a_hundred_merges(families: Families) -> None:
    """Merging and un-merging in place changed a third of the weights."""
    family = families("llama")
    model = ServedModel(copy.deepcopy(family.stock).bfloat16(), name="base", digest="d")
    before = model.checksum()
    weights = family.weights("all")
    for _ in range(100):
        build_merged(list(model.linears.values())[:4], weights)
    assert model.checksum() == before
