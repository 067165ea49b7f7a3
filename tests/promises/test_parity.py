"""Law 3: what a row gets is what transformers and PEFT give it alone, token for token in float32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from adapters.batch import forms
from adapters.merge import build_merged
from server.engine.request import GenerationRequest
from tests.kit import Families, Family, ask, engine_core, full_logits, preload, prompts, run_all
from tests.tiny import greedy, peft_model

SIX = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "opt")
MORE = (
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "phi3",
    "gpt_neo",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
)
PROMPTS = prompts(3, 17, 34)
TOKENS = 10
ROUGH: dict[str, Any] = {"kv_blocks": 11, "max_model_len": 48, "max_batch_tokens": 16, "max_running": 8}


def _mixed(family: Family) -> list[GenerationRequest]:
    """The base and every adapter, with every prompt, in one company."""
    return [
        ask(f"{adapter}/{index}", prompt, adapter, max_tokens=TOKENS)
        for index, prompt in enumerate(PROMPTS)
        for adapter in (None, *family.adapters)
    ]


def _check(family: Family, core: Any) -> None:
    """Run the mixed company and compare each answer with its oracle."""
    requests = _mixed(family)
    answers = run_all(core, requests)
    wrong = [
        request.request_id
        for request in requests
        if answers[request.request_id].tokens != family.expected(request.adapter, request.prompt, TOKENS)
    ]
    assert not [answer.error for answer in answers.values() if answer.error]
    assert not wrong
    assert {answer.reason for answer in answers.values()} == {"length"}


@pytest.mark.parametrize("name", SIX + MORE)
def test_a_mixed_batch_answers_as_transformers_and_peft(name: str, families: Families) -> None:
    family = families(name)
    before = family.model.checksum()
    with engine_core(family) as core:
        _check(family, core)
        assert core.stats().preemptions == 0
        _check(family, core)  # the second time from cached prefixes
        assert core.stats().prefix_hits >= 2 * 5 * 8
    assert family.model.checksum() == before


@pytest.mark.parametrize("name", SIX + MORE)
def test_it_does_so_in_chunks_and_with_preemption(name: str, families: Families) -> None:
    with engine_core(families(name), prefill=5, **ROUGH) as core:
        preload(core, *families(name).adapters)
        _check(families(name), core)
        assert core.stats().preemptions > 0


@pytest.mark.parametrize("name", SIX)
def test_it_does_so_with_memory_for_one_adapter(name: str, families: Families) -> None:
    family = families(name)
    largest = max(family.place(family.weights(adapter)).nbytes for adapter in family.adapters)
    with engine_core(family, budget=largest) as core:
        _check(family, core)
        assert core.stats().adapter_evictions >= len(family.adapters) - 1
        loads = core.stats().adapter_loads
        _check(family, core)
        assert core.stats().adapter_loads > loads  # some were evicted and came back


@pytest.mark.parametrize("name", SIX)
def test_it_does_so_without_prefix_reuse(name: str, families: Families) -> None:
    with engine_core(families(name), prefix_cache=False, max_batch_tokens=40) as core:
        _check(families(name), core)
        assert core.stats().prefix_queries == core.stats().prefix_hits == 0


@pytest.mark.parametrize("by_segment", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_both_plain_forms_of_lora_answer_alike(
    name: str, by_segment: bool, families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "SEGMENT_SECONDS", 0.0 if by_segment else math.inf)
    with engine_core(families(name), model=families(name).plain, prefill=23) as core:
        _check(families(name), core)


@pytest.mark.parametrize("name", SIX)
def test_the_oracles_differ_from_one_another(name: str, families: Families) -> None:
    """Else parity would prove nothing."""
    family = families(name)
    for prompt in PROMPTS:
        answers = [family.expected(adapter, prompt, TOKENS) for adapter in (None, *family.adapters)]
        assert len({tuple(answer) for answer in answers}) >= 4


@pytest.mark.parametrize("name", SIX)
def test_a_row_alone_has_the_logprobs_it_has_in_company(name: str, families: Families) -> None:
    family = families(name)
    asked = [ask(str(adapter), PROMPTS[1], adapter, logprobs=0) for adapter in (None, *family.adapters)]
    with engine_core(family, prefix_cache=False) as core:
        together = run_all(core, asked)
        for request in asked:
            alone = run_all(core, [request])[request.request_id]
            mixed = together[request.request_id]
            assert alone.tokens == mixed.tokens
            difference = [a.logprob - b.logprob for a, b in zip(alone.logprobs, mixed.logprobs, strict=True)]
            assert max(map(abs, difference)) < 1e-4


@pytest.mark.parametrize("name", SIX + MORE)
def test_logprobs_are_those_of_a_stock_forward(name: str, families: Families) -> None:
    family = families(name)
    asked = [
        ask(str(adapter), PROMPTS[2], adapter, logprobs=3, prompt_logprobs=0)
        for adapter in (None, *family.adapters)
    ]
    with engine_core(family, prefill=40) as core:
        answers = run_all(core, asked)
    for request in asked:
        answer = answers[request.request_id]
        tokens = [*request.prompt, *answer.tokens]
        logs = full_logits(family.oracle(request.adapter), tokens).log_softmax(-1)
        expected = logs[torch.arange(len(tokens) - 1), tokens[1:]]
        assert answer.prompt_logprobs is not None
        got = [score.logprob for score in (*answer.prompt_logprobs[1:], *answer.logprobs) if score]
        assert torch.allclose(torch.tensor(got), expected, atol=2e-4, rtol=1e-5)


def _head_adapter(family: Family) -> str:
    family.configs["head"] = {"r": 4, "lora_alpha": 16, "target_modules": ["lm_head", "v_proj"]}
    return "head"


def test_lora_on_an_untied_head(families: Families) -> None:
    """The head sees only the rows whose logits are computed; its adapters are tagged by those."""
    family = families("llama")
    head = _head_adapter(family)
    requests = [
        ask(f"{adapter}/{index}", prompt, adapter, max_tokens=TOKENS, prompt_logprobs=scored)
        for index, prompt in enumerate(PROMPTS)
        for adapter, scored in ((head, None), (None, 0), ("all", None))
    ]
    with engine_core(family, prefill=21) as core:
        answers = run_all(core, requests)
    for request in requests:
        expected = family.expected(request.adapter, request.prompt, TOKENS)
        assert answers[request.request_id].tokens == expected


@pytest.mark.parametrize("name", SIX)
def test_merged_mode_answers_as_peft_merged(name: str, families: Families) -> None:
    family = families(name)
    expected = family.expected("patterns", PROMPTS[1], TOKENS)
    merged = peft_model(family.stock, family.adapter("patterns")).merge_and_unload()
    assert greedy(merged, PROMPTS[1], TOKENS) == expected
    before = family.model.checksum()
    try:
        assert build_merged(family.model.linears.values(), family.weights("patterns")) > 0
        with engine_core(family) as core:
            core.runner.merged_digest = "patterns"
            alone = run_all(core, [ask("m", PROMPTS[1], "patterns", max_tokens=TOKENS)])
            assert alone["m"].tokens == expected
            assert core.model.batch.use_merged
            _check(family, core)  # in company it is computed as any other
            assert not core.model.batch.use_merged or core.stats().running == 0
        assert family.model.checksum() == before
    finally:
        for layer in family.model.linears.values():
            layer.merged = None
