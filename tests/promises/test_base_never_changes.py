"""Law 1: the base's weights have their checksum after any loads, merges and unloads."""

from __future__ import annotations

import copy

import torch

from adapters.merge import build_merged
from server.engine.base import ServedModel
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


def test_bfloat16_survives_a_hundred_merges(families: Families) -> None:
    """Merging and un-merging in place changed a third of the weights."""
    family = families("llama")
    model = ServedModel(copy.deepcopy(family.stock).bfloat16(), name="base", digest="d")
    before = model.checksum()
    weights = family.weights("all")
    for _ in range(100):
        build_merged(list(model.linears.values())[:4], weights)
    assert model.checksum() == before
