"""Checkpoints of every class with the same body, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from server.engine.encoder.loading import empty_task_model, load_encoder
from server.engine.loading import UnsupportedModel, base_kind, context_length
from tests.server.engine.encoder.stand import CPU, FAMILIES, prompts, save_base


def _load(folder: Path) -> Any:
    return load_encoder(folder, AutoConfig.from_pretrained(folder), torch.float32, CPU)


@pytest.mark.parametrize("kind", ["BODY", "MASKED_LM", "SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_any_class_gives_the_same_body_under_the_names_of_the_task_classes(
    family: str, kind: str, tmp_path: Path
) -> None:
    encoder = _load(save_base(family, kind, tmp_path))
    ids = torch.tensor(prompts(11))
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(tmp_path)(input_ids=ids).last_hidden_state
        torch.testing.assert_close(encoder.model(input_ids=ids).logits, expected, rtol=1e-6, atol=1e-6)
    names = {name for name, _ in encoder.model.named_parameters()}
    task_names = {
        name
        for name, _ in AutoModelForSequenceClassification.from_pretrained(tmp_path).named_parameters()
        if name.startswith(encoder.model.base_model_prefix) and ".pooler." not in name
    }
    assert names == task_names
    assert encoder.task == (kind if kind in ("SEQ_CLS", "TOKEN_CLS") else None)
    assert encoder.labels == (("LABEL_0", "LABEL_1") if encoder.task else ())


def test_what_a_checkpoint_has_beside_its_body(tmp_path: Path) -> None:
    heads = {
        (family, kind): sorted(_load(save_base(family, kind, tmp_path / f"{family} {kind}")).head)
        for family in ("bert", "deberta")
        for kind in ("BODY", "MASKED_LM", "SEQ_CLS", "TOKEN_CLS")
    }
    classifier = ["classifier.bias", "classifier.weight"]
    assert heads == {
        ("bert", "BODY"): ["bert.pooler.dense.bias", "bert.pooler.dense.weight"],
        ("bert", "MASKED_LM"): [],
        ("bert", "SEQ_CLS"): ["bert.pooler.dense.bias", "bert.pooler.dense.weight", *classifier],
        ("bert", "TOKEN_CLS"): classifier,
        ("deberta", "BODY"): [],
        ("deberta", "MASKED_LM"): [],
        ("deberta", "SEQ_CLS"): [*classifier, "pooler.dense.bias", "pooler.dense.weight"],
        ("deberta", "TOKEN_CLS"): classifier,
    }


@pytest.mark.parametrize("lost", ["encoder.layer.1.output.dense.weight", "classifier.out_proj.bias"])
def test_nothing_may_be_missing(lost: str, tmp_path: Path) -> None:
    file = save_base("roberta", "SEQ_CLS", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(lost))
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UnsupportedModel, match=rf"its weights lack 1 tensors, such as .*{lost}"):
        _load(tmp_path)


def test_roberta_counts_positions_from_behind_the_padding_token() -> None:
    lengths = {}
    for family, (model_type, fields) in FAMILIES.items():
        config = AutoConfig.for_model(model_type, **fields)
        assert base_kind(config) == "encoder"
        lengths[family] = context_length(config)
    assert lengths == {**dict.fromkeys(FAMILIES, 40), "roberta": 38, "camembert": 38, "xlm-roberta": 38}
    assert base_kind(AutoConfig.for_model("bert", is_decoder=True)) == "decoder"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_class_has_a_head_and_no_memory(family: str) -> None:
    model_type, fields = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **fields)
    model = empty_task_model("TOKEN_CLS", config, labels=7)
    assert model.get_submodule("classifier").weight.shape == (7, 32)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert (config.num_hidden_layers, config.num_labels) == (2, 2)
