"""What does not fit the config or the base is refused by name, before any data is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig
from peft.tuners.lora.config import KasaConfig
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaModel, PreTrainedModel

from adapters.checkpoint.reader import read_adapter
from adapters.errors import AdapterTooLarge, InvalidAdapter
from adapters.limits import AdapterLimits
from tests.adapters.checkpoint.test_variants import model
from tests.adapters.conftest import LIMITS, AdapterFiles
from tests.adapters.records import TOKENS, answers, applied, base_of, edit, read, trained, weights_of
from tests.tiny import VOCAB

LAYER = "base_model.model.model.layers.0"
Q = f"{LAYER}.self_attn.q_proj"
TABLE = "base_model.model.model.embed_tokens"


def made(family: str, folder: Path, **options: Any) -> AdapterFiles:
    fields = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]} | options
    trained(model(family), folder, LoraConfig(**fields))
    return AdapterFiles(folder)


def change(files: AdapterFiles, edit_tensors: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = files.tensors()
    edit_tensors(tensors)
    files.save({key: tensor.contiguous() for key, tensor in tensors.items()})


def refused(stock: PreTrainedModel, folder: Path, **base: Any) -> str:
    files = AdapterFiles(folder)
    spec = replace(base_of(stock), **base)
    with pytest.raises((InvalidAdapter, AdapterTooLarge)) as caught:
        read_adapter(files.config, files.weights, spec, LIMITS, base_weights=weights_of(stock))
    assert "\n" not in str(caught.value)
    return str(caught.value)


MISSING: list[tuple[str, dict[str, Any], str, str]] = [
    ("llama", {"use_dora": True}, f"{Q}.lora_magnitude_vector", "has no lora_magnitude_vector beside it"),
    ("llama", {"lora_bias": True}, f"{Q}.lora_B.bias", "has no lora_bias beside it"),
    ("llama", {"kasa_config": KasaConfig()}, f"{Q}.lora_diag", "has no lora_diag beside it"),
    (
        "llama",
        {"modules_to_save": ["norm"]},
        f"{LAYER}.input_layernorm.weight",
        "modules_to_save names model.layers.0.input_layernorm.weight, but the weights hold no tensor for it",
    ),
    (
        "gpt2",
        {"target_modules": ["c_attn"], "modules_to_save": ["ln_f"]},
        "base_model.model.transformer.ln_f.bias",
        "modules_to_save names transformer.ln_f.bias, but the weights hold no tensor for it",
    ),
    (
        "llama",
        {"trainable_token_indices": [1, 2]},
        f"{TABLE}.token_adapter.trainable_tokens_delta",
        "trainable_token_indices names 'the embedding', but the weights hold no rows for it",
    ),
    (
        "qwen2",
        {"bias": "all"},
        f"{LAYER}.self_attn.k_proj.bias",
        "bias='all' covers model.layers.0.self_attn.k_proj, but the weights hold no bias for it",
    ),
    (
        "qwen2",
        {"bias": "lora_only"},
        f"{Q}.base_layer.bias",
        "bias='lora_only' covers model.layers.0.self_attn.q_proj, but the weights hold no bias",
    ),
    (
        "llama",
        {"target_modules": ["embed_tokens"]},
        f"{TABLE}.lora_embedding_A",
        "(lora_embedding_B) has no lora_embedding_A beside it",
    ),
]


@pytest.mark.parametrize(("family", "options", "key", "message"), MISSING)
def test_a_tensor_that_is_missing(
    family: str, options: dict[str, Any], key: str, message: str, tmp_path: Path
) -> None:
    files = made(family, tmp_path, **options)
    change(files, lambda tensors: tensors.pop(key))
    assert message in refused(model(family), tmp_path)


SHAPES: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"use_dora": True}, f"{Q}.lora_magnitude_vector"),
    ("llama", {"lora_bias": True}, f"{Q}.lora_B.bias"),
    ("llama", {"kasa_config": KasaConfig()}, f"{Q}.lora_diag"),
    ("llama", {"modules_to_save": ["model.norm"]}, "base_model.model.model.norm.weight"),
    ("llama", {"modules_to_save": ["lm_head"]}, "base_model.model.lm_head.weight"),
    ("llama", {"trainable_token_indices": [1, 2]}, f"{TABLE}.token_adapter.trainable_tokens_delta"),
    ("llama", {"target_modules": ["embed_tokens"]}, f"{TABLE}.lora_embedding_A"),
    ("qwen2", {"bias": "all"}, f"{LAYER}.self_attn.k_proj.bias"),
]


@pytest.mark.parametrize(("family", "options", "key"), SHAPES)
def test_a_shape_that_does_not_fit(family: str, options: dict[str, Any], key: str, tmp_path: Path) -> None:
    files = made(family, tmp_path, **options)
    change(files, lambda tensors: tensors.update({key: tensors[key][:-1]}))
    message = refused(model(family), tmp_path)
    assert f"tensor {key!r} has shape" in message
    assert "; tiny needs (" in message


def test_tensors_for_what_the_base_lacks(tmp_path: Path) -> None:
    llama = model("llama")
    files = made("llama", tmp_path, bias="all", modules_to_save=["model.norm"])
    keep = files.tensors()
    files.save(keep | {f"{LAYER}.self_attn.k_proj.bias": torch.ones(24)})
    assert "tiny has no bias at model.layers.0.self_attn.k_proj" in refused(llama, tmp_path)
    files.save(keep)
    files.set(modules_to_save=["model.norm", "score"])
    files.save(keep | {"base_model.model.score.weight": torch.ones(2, 48)})
    assert "tiny has no module score; a trained head needs task_type SEQ_CLS" in refused(llama, tmp_path)


def test_modules_that_cannot_be_trained_as_a_whole(tmp_path: Path) -> None:
    files = made("llama", tmp_path, modules_to_save=["up_proj"])
    up = "model.layers.0.mlp.up_proj"
    left = base_of(model("llama")).replaceable - {up}
    message = refused(model("llama"), tmp_path, replaceable=left)
    assert f"{up} of tiny can't be replaced row by row; train it with LoRA" in message
    change(files, lambda tensors: tensors.update({f"base_model.model.{up}.extra": torch.ones(3)}))
    assert f"tensor 'base_model.model.{up}.extra': {up} of tiny can't be replaced" in refused(
        model("llama"), tmp_path
    )


def test_an_embedding_where_the_base_has_none(tmp_path: Path) -> None:
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    files = made("llama", tmp_path, target_modules=[*linears, "embed_tokens"])
    files.set(target_modules="all-linear")
    message = "model.embed_tokens is not an embedding of tokens of tiny"
    assert message in refused(model("llama"), tmp_path, embeddings={})


def test_dora_on_an_embedding(tmp_path: Path) -> None:
    made("llama", tmp_path, target_modules=["embed_tokens", "q_proj"], use_dora=True)
    assert "DoRA on an embedding is not supported; train without model.embed_tokens" in refused(
        model("llama"), tmp_path
    )


@pytest.mark.parametrize("ids", [[1, 1], [1, VOCAB]])
def test_tokens_that_are_none(ids: list[int], tmp_path: Path) -> None:
    files = made("llama", tmp_path, trainable_token_indices=[1, 2])
    files.set(trainable_token_indices=ids)
    assert "has a token twice, or one that is not below 96" in refused(model("llama"), tmp_path)


def test_tokens_of_tables_that_share_their_weight(tmp_path: Path) -> None:
    made("qwen2", tmp_path, trainable_token_indices={"embed_tokens": [1, 2], "lm_head": [3, 4]})
    assert "differ between tables that share their weight" in refused(model("qwen2"), tmp_path)


def test_rows_of_a_table_that_the_config_does_not_name(tmp_path: Path) -> None:
    files = made("llama", tmp_path, trainable_token_indices={"embed_tokens": [1, 2]})
    files.set(trainable_token_indices={"other": [1, 2]})
    assert "does not name model.embed_tokens, or it is no embedding" in refused(model("llama"), tmp_path)


def test_biases_outside_of_the_targets(tmp_path: Path) -> None:
    files = made("qwen2", tmp_path, bias="all")
    files.set(bias="lora_only")
    assert "has no model.layers.0.self_attn.k_proj among its target_modules" in refused(
        model("qwen2"), tmp_path
    )


EXPERTS = {"target_modules": [], "target_parameters": ["experts.gate_up_proj"]}


def test_experts_that_do_not_fit(tmp_path: Path) -> None:
    moe = model("qwen3_moe")
    files = made("qwen3_moe", tmp_path, **EXPERTS)
    files.set(target_parameters=["experts.nothing"])
    assert "target_parameters: tiny has no parameter 'experts.nothing'" in refused(moe, tmp_path)
    files.set(target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    assert "names model.layers.0.mlp.experts.gate_up_proj, but the weights hold no tensors" in refused(
        moe, tmp_path
    )
    files.set(target_parameters=["experts.gate_up_proj"])
    assert "target_parameters: model.layers.0.mlp.experts.gate_up_proj is neither" in refused(
        moe, tmp_path, experts={}
    )
    key = f"{LAYER}.mlp.experts.lora_A.weight"
    change(files, lambda tensors: tensors.update({key: tensors[key][:-1]}))
    message = refused(moe, tmp_path)
    assert "have shapes (15, 48) and (80, 16); tiny needs (16, 48) and (80, 16) for " in message
    assert "model.layers.0.mlp.experts.gate_up_proj with rank 4" in message


def test_experts_as_older_versions_of_peft_laid_them_out(tmp_path: Path) -> None:
    files = made("qwen3_moe", tmp_path, **EXPERTS)
    files.set(peft_version="0.18.1")

    def swap(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if "lora_A" in key]:
            other = key.replace("lora_A", "lora_B")
            tensors[key], tensors[other] = tensors[other].T, tensors[key].T

    change(files, swap)
    assert "before PEFT 0.19 the layout of target_parameters was another one" in refused(
        model("qwen3_moe"), tmp_path
    )


@pytest.mark.parametrize(
    ("task", "kind", "fits"),
    [
        (None, "decoder", True),
        ("CAUSAL_LM", "decoder", True),
        ("CAUSAL_LM", "encoder", False),
        ("CAUSAL_LM", "encoder-decoder", False),
        ("SEQ_2_SEQ_LM", "encoder-decoder", True),
        ("SEQ_2_SEQ_LM", "decoder", False),
        ("FEATURE_EXTRACTION", "encoder", True),
        ("FEATURE_EXTRACTION", "decoder", True),
        ("FEATURE_EXTRACTION", "encoder-decoder", False),
    ],
)
def test_tasks_need_their_kind_of_base(task: str | None, kind: Any, fits: bool, tmp_path: Path) -> None:
    files = made("llama", tmp_path)
    files.set(task_type=task)
    if fits:
        spec = replace(base_of(model("llama")), kind=kind)
        assert read_adapter(files.config, files.weights, spec, LIMITS).task == task
    else:
        assert f"task_type '{task}' needs a base of kind" in refused(model("llama"), tmp_path, kind=kind)


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_invocation_tokens_need_a_decoder(kind: Any, tmp_path: Path) -> None:
    made("llama", tmp_path).set(task_type=None, alora_invocation_tokens=[5, 6])
    reason = refused(model("llama"), tmp_path, kind=kind)
    assert f"alora_invocation_tokens acts on a decoder's tokens; tiny is of kind {kind}" in reason


def test_a_head_on_a_decoder(tmp_path: Path) -> None:
    llama = model("llama")
    classifier = AutoModelForSequenceClassification.from_config(
        type(llama.config)(**llama.config.to_dict() | {"num_labels": 3})
    ).eval()
    classifier.model.load_state_dict(llama.model.state_dict())
    config = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj"])
    theirs = answers(trained(classifier, tmp_path, config))
    weights = read(llama, tmp_path, labels=("good", "bad", "mixed"))
    assert (weights.task, weights.labels) == ("SEQ_CLS", ("good", "bad", "mixed"))
    assert {name: tuple(tensor.shape) for name, tensor in weights.head.items()} == {"score.weight": (3, 48)}
    ours = applied(classifier, replace(weights, replaced={"score": {"weight": weights.head["score.weight"]}}))
    torch.testing.assert_close(answers(ours), theirs, rtol=1e-5, atol=1e-5)
    assert read(llama, tmp_path).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(InvalidAdapter, match="2 labels for a head of 3 outputs; give one for each"):
        read(llama, tmp_path, labels=("good", "bad"))
    files = AdapterFiles(tmp_path)
    change(files, lambda tensors: tensors.pop("base_model.model.score.weight"))
    assert "task_type 'SEQ_CLS' needs a trained head, but the weights hold none" in refused(llama, tmp_path)


def test_an_adapter_of_the_bare_model(tmp_path: Path) -> None:
    llama = model("llama")
    bare = LlamaModel(llama.config).eval()
    bare.load_state_dict(llama.model.state_dict())
    config = LoraConfig(
        r=4, task_type="FEATURE_EXTRACTION", target_modules=["q_proj", "up_proj"], use_dora=True
    )
    wrapped = trained(bare, tmp_path, config)
    with torch.inference_mode():
        theirs = wrapped(input_ids=TOKENS).last_hidden_state
        weights = read(llama, tmp_path)
        ours = applied(llama, weights).model(input_ids=TOKENS).last_hidden_state
    assert all(name.startswith("model.layers.") for name in weights.deltas)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_rank_that_grows_when_it_is_folded(tmp_path: Path) -> None:
    files = made("llama", tmp_path, init_lora_weights="pissa")
    spec, weights = base_of(model("llama")), weights_of(model("llama"))
    read_adapter(files.config, files.weights, spec, AdapterLimits(max_rank=8), base_weights=weights)
    with pytest.raises(AdapterTooLarge, match="has rank 8 as pissa is served; the largest rank is 7"):
        read_adapter(files.config, files.weights, spec, AdapterLimits(max_rank=7), base_weights=weights)


def test_without_the_base_s_weights(tmp_path: Path) -> None:
    files = made("llama", tmp_path, use_dora=True)
    with pytest.raises(InvalidAdapter, match=r"only with the base's weights \(model\.layers\.0\.self_attn"):
        read_adapter(files.config, files.weights, base_of(model("llama")), LIMITS)


def test_pruned_ranks_that_the_file_does_not_have(tmp_path: Path) -> None:
    config = AdaLoraConfig(init_r=5, total_step=10, task_type="CAUSAL_LM", target_modules=["q_proj"])
    trained(model("llama"), tmp_path, config)
    edit(tmp_path, rank_pattern={"model.layers.1.self_attn.q_proj.lora_E": [True, False, True, True, True]})
    assert "has rank 5 (shape (5, 48)); adapter_config.json gives this module rank 4" in refused(
        model("llama"), tmp_path
    )
