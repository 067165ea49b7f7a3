"""A T5 folder becomes a model with all of its weights; lengths and types are those of its kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from server.engine import loading
from server.engine.loading import UnsupportedModel
from tests.kit import prompts
from tests.server.engine.seq2seq.conftest import MakeFamily
from tests.server.engine.seq2seq.stand import FAMILIES, generate

CPU = torch.device("cpu")
T5 = SimpleNamespace(model_type="t5", is_encoder_decoder=True, dtype=torch.float16)


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_what_was_saved(family: str, seq2seq: MakeFamily, tmp_path: Path) -> None:
    seq2seq(family).stock.save_pretrained(tmp_path)
    config = loading.load_config(tmp_path)
    assert loading.base_kind(config) == "encoder-decoder"
    model = loading.load_model(tmp_path, config, torch.float32, CPU)
    (source,) = prompts(9)
    assert generate(model, source, 6) == seq2seq(family).expected(None, source, 6)


def test_other_families_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    config = BartConfig(vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1)
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(UnsupportedModel, match=r"bart .* only the T5 family is served \(t5, mt5, umt5\)"):
        loading.load_config(tmp_path)


def test_source_and_target_are_each_as_long_as_in_training() -> None:
    assert loading.context_length(T5) == 1024
    assert loading.context_length(SimpleNamespace(**vars(T5), n_positions=256)) == 512


def test_float16_is_avoided_and_refused() -> None:
    assert loading.choose_dtype("auto", T5, torch.device("cuda")) == torch.bfloat16
    assert loading.choose_dtype("auto", T5, CPU) != torch.float16
    with pytest.raises(UnsupportedModel, match="--dtype float16: t5 overflows in it"):
        loading.choose_dtype("float16", T5, CPU)
