"""Law 6: every tensor and every config field of an adapter is either applied or refused by name.

Each adapter here is one that PEFT itself made with the field in question, and PEFT's own logits say whether
it was applied.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.config_fields import APPLIED, NO_EFFECT, REFUSED
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter
from tests.adapters.records import applied, trained
from tests.kit import LIMITS, Families, Family, full_logits, prompts
from tests.tiny import make_adapter, peft_model

PROMPT = prompts(12)[0]
SOME = ["q_proj", "v_proj", "down_proj"]

ALWAYS_THE_SAME = {"peft_type", "task_type"}  # LORA and CAUSAL_LM here
EXPERTS = {"target_parameters"}  # of which this base has none; see tests/adapters/checkpoint/test_variants.py
TRAINED_WITH: dict[str, dict[str, Any]] = {
    "r": {"r": 7},
    "lora_alpha": {"lora_alpha": 3},
    "use_rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, r".*\.1\.mlp\..*": 5}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 50}},
    "target_modules": {"target_modules": r".*\.[02]\.self_attn\.(k|o)_proj|lm_head"},
    "exclude_modules": {"exclude_modules": ["k_proj", "model.layers.1.mlp.up_proj"]},
    "layers_to_transform": {"target_modules": SOME, "layers_to_transform": [0, 2]},
    "layers_pattern": {"target_modules": SOME, "layers_to_transform": 1, "layers_pattern": "layers"},
    "init_lora_weights": {"init_lora_weights": "gaussian"},
}
"""For each field that is applied, options with which it changes what the adapter computes."""

WITH_OTHER_TENSORS: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "all"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [3, 5]},
    "kasa_config": {"kasa_config": peft.tuners.lora.config.KasaConfig()},
}
"""For each field that adds tensors, options that add them."""

WITH_OTHER_MEANING: dict[str, dict[str, Any]] = {
    "use_bdlora": {
        "use_bdlora": peft.tuners.lora.config.BdLoraConfig(target_modules_bd_a=["q_proj", "fc2"], nblocks=2)
    },
    "alora_invocation_tokens": {
        "alora_invocation_tokens": PROMPT[:2],
        "target_modules": ["q_proj"],  # PEFT fails on fc2, which OPT calls with all rows in one dimension
    },
}
"""For each field that changes what the tensors mean, options that do so."""


@pytest.fixture
def family(families: Families) -> Family:
    return families("llama")


def read(family: Family, folder: Path) -> AdapterWeights:
    config = (folder / CONFIG_FILE).read_bytes()
    return read_adapter(
        config, folder / WEIGHTS_FILE, family.model.spec, LIMITS, base_weights=family.model.weight
    )


def refused(family: Family, folder: Path) -> str:
    with pytest.raises(InvalidAdapter) as caught:
        read(family, folder)
    return str(caught.value)


def edit(folder: Path, **fields: object) -> None:
    file = folder / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def logits(family: Family, weights: AdapterWeights) -> Tensor:
    """What the records make of the stock model, by the formula."""
    head = "lm_head" if family.model.spec.tied_head else None
    return full_logits(applied(family.stock, weights, head), PROMPT)


def test_the_tables_know_every_field_of_peft() -> None:
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields <= {*APPLIED, *NO_EFFECT, *REFUSED}
    shown = [*TRAINED_WITH, *WITH_OTHER_TENSORS, *WITH_OTHER_MEANING]
    assert sorted(shown) == sorted(APPLIED - ALWAYS_THE_SAME - EXPERTS)


@pytest.mark.parametrize("field", sorted(TRAINED_WITH))
def test_what_is_applied_changes_the_answer_as_in_peft(field: str, family: Family, tmp_path: Path) -> None:
    folder = make_adapter(family.stock, tmp_path / "adapter", 1, **TRAINED_WITH[field])
    ours, theirs = logits(family, read(family, folder)), full_logits(peft_model(family.stock, folder), PROMPT)

    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, full_logits(family.stock, PROMPT), atol=0.1)


@pytest.mark.parametrize("field", sorted(NO_EFFECT))
def test_what_has_no_effect_has_none(field: str, family: Family, tmp_path: Path) -> None:
    folder = make_adapter(family.stock, tmp_path / "adapter", 1)
    before = read(family, folder)
    edit(folder, **{field: 0.5 if field == "lora_dropout" else "something"})
    after = read(family, folder)

    assert after.digest == before.digest
    for name, delta in before.deltas.items():
        assert torch.equal(after.deltas[name].a, delta.a)
        assert torch.equal(after.deltas[name].b, delta.b)
        assert after.deltas[name].scale == delta.scale


@pytest.mark.parametrize("field", [*sorted(REFUSED), "a_field_of_tomorrow"])
def test_what_is_not_applied_is_refused_by_name(field: str, family: Family, tmp_path: Path) -> None:
    folder = make_adapter(family.stock, tmp_path / "adapter", 1)
    edit(folder, **{field: ["something"]})

    assert field in refused(family, folder)


@pytest.mark.parametrize("field", [*WITH_OTHER_TENSORS, *WITH_OTHER_MEANING])
def test_what_is_more_than_two_factors_is_applied_as_in_peft(
    field: str, families: Families, tmp_path: Path
) -> None:
    family = families("opt")  # which has biases to train
    options = {"target_modules": ["q_proj", "fc2"], **{**WITH_OTHER_TENSORS, **WITH_OTHER_MEANING}[field]}
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, **options)
    theirs = trained(family.stock, tmp_path, config)
    ours = logits(family, read(family, tmp_path))
    torch.testing.assert_close(ours, full_logits(theirs, PROMPT), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("field", sorted(WITH_OTHER_TENSORS))
def test_tensors_are_refused_if_the_config_is_silent(field: str, families: Families, tmp_path: Path) -> None:
    family = families("opt")
    folder = tmp_path / "adapter"
    options = {"target_modules": ["q_proj", "fc2"], **WITH_OTHER_TENSORS[field]}
    trained(family.stock, folder, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    edit(folder, **{field: "none" if field == "bias" else None})
    ordinary = {key for key in load_file(folder / WEIGHTS_FILE) if key.endswith(("A.weight", "B.weight"))}
    others = load_file(folder / WEIGHTS_FILE).keys() - ordinary
    message = refused(family, folder)
    assert any(key in message for key in others), message


def test_every_tensor_of_a_file_is_needed_and_used(family: Family, tmp_path: Path) -> None:
    folder = make_adapter(family.stock, tmp_path / "adapter", 1, target_modules=["q_proj", "o_proj"])
    tensors = load_file(folder / WEIGHTS_FILE)
    whole = read(family, folder)
    for key, tensor in tensors.items():
        save_file({other: tensors[other] for other in tensors if other != key}, folder / WEIGHTS_FILE)
        assert key.partition(".lora_")[0] in refused(family, folder)
        save_file({**tensors, key: 2 * tensor}, folder / WEIGHTS_FILE)
        changed = read(family, folder)
        assert changed.digest != whole.digest
        assert [
            name
            for name, delta in whole.deltas.items()
            if not torch.equal(delta.b @ delta.a, changed.deltas[name].b @ changed.deltas[name].a)
        ] == [key.removeprefix("base_model.model.").partition(".lora_")[0]]
