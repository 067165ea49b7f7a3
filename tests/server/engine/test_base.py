"""A base proves at load that it answers rightly here, or is refused with the reason."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BartForConditionalGeneration

from adapters.batch.linear import make_linear
from server.engine import attention
from server.engine.attention import paged_attention
from server.engine.base import ServedModel
from server.engine.loading import UnsupportedModel
from tests.kit import Families, ask, engine_core, full_logits, prompts, run_all
from tests.tiny import FAMILIES, VOCAB, make_model

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BYPASS: dict[str, dict[str, Any]] = {
    "falcon": SMALL,
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gptj": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
}


def _serve(model: Any) -> ServedModel:
    return ServedModel(model, name="base", digest="d")


def _model(model_type: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize("model_type", BYPASS)
def test_refuses_a_model_that_bypasses_the_attention_interface(model_type: str) -> None:
    with pytest.raises(
        UnsupportedModel, match=f"^{model_type} .*(bypasses|can't run as one flat row)"
    ) as info:
        _serve(_model(model_type, **BYPASS[model_type]))
    assert "\n" not in str(info.value)


def test_refuses_an_encoder_decoder() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    config = AutoConfig.for_model("bart", vocab_size=64, **sizes, **heads)
    with pytest.raises(UnsupportedModel, match="bart is an encoder-decoder model; of these only the T5"):
        _serve(BartForConditionalGeneration(config).eval())


def test_refuses_layer_types_it_does_not_know(families: Families) -> None:
    model = copy.deepcopy(families("llama").stock)
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(UnsupportedModel, match=re.escape("['linear_attention']")):
        _serve(model)


def _skewed(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
    """Attention that is a little wrong in one layer."""
    factor = 1.5 if module.layer_idx == 1 else 1.0
    return paged_attention(module, query, factor * key, value, *rest, **options)


def _windowless(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
    return paged_attention(module, query, key, value, *rest, **options | {"sliding_window": None})


def _unsoftened(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
    return paged_attention(module, query, key, value, *rest, **options | {"softcap": None, "s_aux": None})


@pytest.mark.parametrize(
    ("family", "wrong", "reason"),
    [
        ("llama", _skewed, "answers differently"),
        ("mistral", _windowless, "answers differently|sliding window"),
        ("gemma2", _unsoftened, "answers differently"),
        ("gpt_oss", _unsoftened, "answers differently"),
        ("gemma3_text", _windowless, "sliding window"),
    ],
)
def test_refuses_wrong_attention(
    family: str, wrong: Any, reason: str, families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self check sees a lost scale, window, cap or sink."""
    with monkeypatch.context() as patched:
        patched.setattr(attention, "paged_attention", wrong)
        with pytest.raises(UnsupportedModel, match=reason):
            _serve(copy.deepcopy(families(family).stock))
    attention.register()


def test_refuses_a_model_that_forgets_positions(families: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(families("llama").stock)
    rotary = type(model.model.rotary_emb)
    right = rotary.forward
    monkeypatch.setattr(
        rotary, "forward", lambda self, x, position_ids: right(self, x, _from_zero(position_ids))
    )
    with pytest.raises(UnsupportedModel, match="answers differently"):
        _serve(model)


def _from_zero(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[-1])[None]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_flat_row_gives_the_stock_logits(name: str, families: Families) -> None:
    family = families(name)
    prompt = prompts(40, seed=8)[0]
    with engine_core(family, prefill=11) as core:
        scores = run_all(core, [ask("x", prompt, prompt_logprobs=0)])["x"].prompt_logprobs
    logs = full_logits(family.stock, prompt).log_softmax(-1)
    assert scores is not None
    for position, score in enumerate(scores[1:]):
        assert score is not None
        assert abs(score.logprob - float(logs[position, prompt[position + 1]])) < 2e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_half_precision_stays_near_float32(name: str, dtype: torch.dtype, families: Families) -> None:
    family = families(name)
    model = _serve(make_model(name).to(dtype))
    prompt = prompts(30, seed=3)[0]
    with engine_core(family, model=model, prefill=9) as core:
        core.residency._place = lambda weights: place_as(weights, model)
        for adapter in (None, "all"):
            answer = run_all(core, [ask("x", prompt, adapter, prompt_logprobs=0)])["x"]
            logs = full_logits(family.oracle(adapter), prompt).log_softmax(-1)
            expected = logs[torch.arange(len(prompt) - 1), prompt[1:]]
            got = torch.tensor([score.logprob for score in (answer.prompt_logprobs or ())[1:] if score])
            allowed = (0.15 if dtype == torch.bfloat16 else 0.03) * expected.abs().mean()
            assert float((got - expected).abs().mean()) < allowed
            assert len(answer.tokens) == 8


def place_as(weights: Any, model: ServedModel) -> Any:
    return model.batch.place(weights)


def test_describes_itself(families: Families) -> None:
    model = families("llama").model
    assert (model.spec.name, model.spec.digest, model.vocab_size) == ("base", "base-llama", VOCAB)
    layers, kv_heads, head_dim = 3, 2, 12
    assert model.kv_bytes == layers * 2 * kv_heads * head_dim * 4
    assert model.spec.tied_head is False
    assert families("qwen2").model.spec.tied_head is True


def test_its_checksum_sees_any_changed_weight(families: Families) -> None:
    model = _serve(copy.deepcopy(families("llama").stock))
    before = model.checksum()
    assert before == _serve(copy.deepcopy(families("llama").stock)).checksum()
    norm = model.model.model.norm.weight
    kept = norm.clone()
    norm[3] += 1e-6
    assert model.checksum() != before
    norm.copy_(kept)
    assert model.checksum() == before
    layer = model.linears["model.layers.1.mlp.up_proj"]
    changed = layer.weight.clone()
    changed[2, 5] += 1e-3
    layer.linear = make_linear(changed, layer.bias)
    assert model.checksum() != before
