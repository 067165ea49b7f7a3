"""Model classes that need a hand, and those whose cache has other widths: as transformers answers."""

from __future__ import annotations

import pytest

from server.engine.attention import NAME
from server.engine.families import use_paged_attention
from tests.kit import Families, ask, engine_core, prompts, run_all
from tests.tiny import make_model


def test_gpt_neo_keeps_the_window_of_each_layer(families: Families) -> None:
    """Its local layers see 9 tokens here; an answer with longer prompts tells whether they do."""
    family = families("gpt_neo")
    requests = [ask(str(len(p)), p, max_tokens=6) for p in prompts(5, 9, 10, 40)]
    with engine_core(family) as core:
        answers = run_all(core, requests)
    for request in requests:
        assert answers[request.request_id].tokens == family.expected(None, request.prompt, 6)


def test_the_cache_of_latent_attention_has_its_own_widths(families: Families) -> None:
    """DeepSeek V3: keys of 12 + 8, values of 16, for 4 heads in 3 layers, in float32."""
    assert families("deepseek_v3").model.kv_bytes == 3 * 4 * (12 + 8 + 16) * 4


@pytest.mark.parametrize("name", ["deepseek_v3", "mixtral", "gpt_neo"])
def test_they_answer_alike_in_plain_operations(name: str, families: Families) -> None:
    family = families(name)
    requests = [
        ask(f"{adapter}/{len(prompt)}", prompt, adapter, max_tokens=6)
        for prompt in prompts(4, 21)
        for adapter in (None, "all", "attention")
    ]
    with engine_core(family, model=family.plain, prefill=9) as core:
        answers = run_all(core, requests)
    for request in requests:
        assert answers[request.request_id].tokens == family.expected(request.adapter, request.prompt, 6)


def test_other_models_go_the_way_of_the_interface() -> None:
    model = make_model("llama")
    use_paged_attention(model)
    assert model.config._attn_implementation == NAME
