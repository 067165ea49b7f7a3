"""Experts and routers: each row has its own adapter's deltas, as PEFT gives them to that adapter alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.base import ExpertsSpec
from adapters.batch import experts
from adapters.batch.experts import find_experts
from adapters.batch.segment import Segment
from server.engine.attention import KVCache, StepLayout
from tests.kit import Families, Family, full_logits, prompts
from tests.tiny import make_model

MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss")
CONFIGS: dict[str, dict[str, Any]] = {
    "both": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "r": 4, "lora_alpha": 8},
    "down": {"target_parameters": ["experts.down_proj"], "r": 3, "lora_alpha": 9, "use_rslora": True},
    "first": {"target_parameters": ["experts.gate_up_proj"], "r": 8, "lora_alpha": 4},
    "router": {"target_parameters": ["gate.weight", "router.weight"], "r": 2, "lora_alpha": 6},
}


def _family(families: Families, name: str) -> Family:
    family = families(name)
    for adapter, config in CONFIGS.items():
        named = config["target_parameters"]
        if adapter == "router":
            named = [target for target in named if any(p.endswith(target) for p in family.model.spec.experts)]
        modules = ["q_proj"] if adapter == "both" and name != "deepseek_v3" else []
        family.configs[adapter] = {**config, "target_parameters": named, "target_modules": modules}
    return family


def mixed_logits(family: Family, company: Sequence[tuple[str | None, Sequence[int]]]) -> list[Tensor]:
    """Logits of all tokens of each sequence, all of them computed in one forward pass."""
    model = family.model
    lengths = [len(tokens) for _, tokens in company]
    stops = torch.tensor(lengths).cumsum(0).tolist()
    starts = [stop - length for stop, length in zip(stops, lengths, strict=True)]
    placed = {a: family.place(family.weights(a)) for a, _ in company if a is not None}
    segments = [
        Segment(start, stop, placed[adapter] if adapter is not None else None)
        for (adapter, _), start, stop in zip(company, starts, stops, strict=True)
    ]
    layout = StepLayout.of(1, [range(*span) for span in zip(starts, stops, strict=True)], lengths, lengths)
    plan = model.plan_type(KVCache(stops[-1], model.dtype, model.device), layout)
    tokens = torch.tensor([token for _, own in company for token in own])
    model.batch.begin(segments, segments)
    try:
        rows = torch.arange(stops[-1])
        logits = model.forward(tokens, torch.from_numpy(layout.positions), plan, rows)
    finally:
        model.batch.end()
    return list(torch.split(logits, lengths))


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest, as a part of the largest logit."""
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", MIXTURES)
def test_every_row_has_the_logits_that_peft_gives_its_adapter_alone(name: str, families: Families) -> None:
    family = _family(families, name)
    before = family.model.checksum()
    adapters = [None, *CONFIGS, None, "both"]
    company = list(zip(adapters, prompts(9, 5, 1, 12, 7, 2, 6), strict=True))
    for (adapter, tokens), got in zip(company, mixed_logits(family, company), strict=True):
        assert difference(got, full_logits(family.oracle(adapter), tokens)) < 1e-5
        if adapter is not None:
            assert difference(got, full_logits(family.stock, tokens)) > 1e-3
    assert family.model.checksum() == before


@pytest.mark.parametrize("name", MIXTURES)
def test_the_form_for_odd_ranks_gives_the_same(
    name: str, families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = _family(families, name)
    company = list(zip(["both", None, "first"], prompts(6, 4, 5), strict=True))
    aligned = mixed_logits(family, company)
    monkeypatch.setattr(experts, "_aligned", lambda tensor: False)
    for one, other in zip(aligned, mixed_logits(family, company), strict=True):
        assert difference(one, other) < 1e-5


def test_steps_without_such_adapters_run_the_stock_code(
    families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = _family(families, "mixtral")

    def refuse(*_: object) -> Tensor:
        raise AssertionError("the stock code was not used")

    monkeypatch.setattr(experts, "_grouped", refuse)
    company = list(zip([None, "attention"], prompts(4, 5), strict=True))
    for (adapter, tokens), got in zip(company, mixed_logits(family, company), strict=True):
        assert difference(got, full_logits(family.oracle(adapter), tokens)) < 1e-5


def test_a_row_does_not_depend_on_an_overflow_beside_it(families: Families) -> None:
    family = _family(families, "mixtral")
    tokens, others = prompts(7, 9)
    alone = mixed_logits(family, [("both", tokens)])[0]
    loud = family.weights("down")
    for record in loud.experts.values():
        record.a.mul_(1e30)
        record.b.mul_(1e30)
    original = family.weights
    family.weights = lambda name: loud if name == "loud" else original(name)  # type: ignore[method-assign]
    try:
        beside, got = mixed_logits(family, [("loud", others), ("both", tokens)])
    finally:
        del family.weights
    assert not beside.isfinite().all()
    assert difference(got, alone) < 1e-5


def test_parameters_are_told_with_their_shapes_and_the_way_they_are_stored() -> None:
    found = find_experts(make_model("gpt_oss"))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert found[name] == ExpertsSpec(name, 4, 48, 160, transposed=True)
    found = find_experts(make_model("deepseek_v3"))
    assert not any(".layers.0." in name for name in found)  # a dense layer
    name = "model.layers.1.mlp.experts.down_proj"
    assert found[name] == ExpertsSpec(name, 8, 40, 48)
    name = "model.layers.1.mlp.gate.weight"
    assert found[name] == ExpertsSpec(name, 1, 48, 8, router=True)


def test_dense_models_have_none() -> None:
    assert find_experts(make_model("llama")) == {}


def test_a_router_that_says_something_else_is_left_alone() -> None:
    class OddRouter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.t()

    model = nn.ModuleDict({"router": OddRouter()})
    assert find_experts(copy.deepcopy(model)) == {}
