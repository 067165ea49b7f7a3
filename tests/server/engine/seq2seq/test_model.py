"""The base in serving form: what it tells of itself, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from server.engine.loading import UnsupportedModel
from server.engine.seq2seq.memory import Memory
from server.engine.seq2seq.model import Seq2SeqModel
from tests.kit import prompts
from tests.server.engine.seq2seq.conftest import MakeFamily
from tests.server.engine.seq2seq.stand import FAMILIES, START, make_t5


def _serve(model: Any) -> Seq2SeqModel:
    return Seq2SeqModel(model, name="base", digest="d", source="here")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_both_sides_can_be_adapted(family: str, seq2seq: MakeFamily) -> None:
    spec = seq2seq(family).model.spec
    linears = {
        name for name, module in seq2seq(family).stock.named_modules() if type(module) is torch.nn.Linear
    }
    assert set(spec.linears) == linears
    assert spec.kind == "encoder-decoder"
    assert spec.tied_head == (family == "t5")
    assert set(spec.embeddings) == {"encoder.embed_tokens", "decoder.embed_tokens"}


def test_keys_and_values_of_all_cross_attention_are_one_group(seq2seq: MakeFamily) -> None:
    groups = seq2seq("t5").model.batch.groups
    cross = [f"decoder.block.{i}.layer.1.EncDecAttention.{part}" for i in range(3) for part in "kv"]
    assert tuple(cross) in groups


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_stock_models(family: str, seq2seq: MakeFamily) -> None:
    model, stock = seq2seq(family).model, seq2seq(family).stock
    source, target = prompts(13, 6)
    memory = Memory(model.shape, 13, 7)
    model.encode([source], [memory], [None])
    logits = [model.decode([token], [memory], [None])[0] for token in (START, *target)]
    with torch.inference_mode():
        ids = torch.tensor([source]), torch.tensor([[START, *target]])
        expected = stock(input_ids=ids[0], decoder_input_ids=ids[1]).logits[0]
    torch.testing.assert_close(torch.stack(logits), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_served(seq2seq: MakeFamily) -> None:
    stock = copy.deepcopy(seq2seq("flan").stock).to(torch.bfloat16)
    stock.set_attn_implementation("sdpa")  # as it is loaded; eager attention rounds more
    model = _serve(stock)
    assert model.kv_bytes == 2 * 3 * 4 * 12 * 2
    memory = Memory(model.shape, 4, 1)
    model.encode([[5, 6, 7, 1]], [memory], [None])
    assert model.decode([START], [memory], [None]).isfinite().all()


def test_a_model_that_computes_otherwise_is_refused() -> None:
    model = make_t5("t5")
    attention = model.decoder.block[1].layer[0].SelfAttention
    attention.o.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(UnsupportedModel, match="t5 answers differently here than in transformers"):
        _serve(model)


def test_a_model_without_a_start_token_is_refused() -> None:
    model = make_t5("t5")
    model.generation_config.decoder_start_token_id = None
    model.config.decoder_start_token_id = None
    with pytest.raises(UnsupportedModel, match="has no decoder_start_token_id"):
        _serve(model)


def test_other_families_are_refused_by_name() -> None:
    config = BartConfig(
        vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16
    )
    with pytest.raises(UnsupportedModel, match=r"bart is an encoder-decoder model; of these only the T5"):
        _serve(BartForConditionalGeneration(config))


def test_its_checksum_tells_weights_apart(seq2seq: MakeFamily) -> None:
    family = seq2seq("t5")
    assert family.model.checksum() == _serve(make_t5("t5")).checksum()
    assert family.model.checksum() != _serve(make_t5("t5", seed=1)).checksum()
