"""Deltas equal PEFT's own; everything else is refused with a line that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel

from adapters.base import BaseSpec
from adapters.checkpoint.config import parse_config
from adapters.checkpoint.plan import plan_adapter
from adapters.checkpoint.reader import read_adapter
from adapters.checkpoint.safetensors_file import read_header
from adapters.errors import InvalidAdapter
from tests.adapters.conftest import LIMITS, AdapterFiles, save, spec_of, tiny_gpt2, tiny_llama, wrap

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

ORACLE: list[tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = [
    (tiny_llama, {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]}),
    (tiny_llama, {"r": 6, "use_rslora": True, "target_modules": "all-linear"}),
    (
        tiny_llama,
        {
            "r": 4,
            "use_rslora": True,
            "target_modules": ["q_proj", "k_proj", "down_proj"],
            # In the order of the alphabet, as PEFT saves them; it decides which of several applies.
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, r"model\.layers\.[02]\..*": 5, "q_proj": 3},
            "alpha_pattern": {r"^model\.layers\.0\..*": 1, "k_proj": 3, "q_.*": 100},
        },
    ),
    (tiny_llama, {"target_modules": r".*\.(?!1\.)\d\.mlp\.(gate|up)_proj|lm_head"}),
    (tiny_llama, {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [0, 2]}),
    (tiny_llama, {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}),
    (tiny_llama, {"target_modules": "all-linear", "exclude_modules": ["k_proj", "layers.1.mlp.up_proj"]}),
    (tiny_llama, {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.1\..*"}),
    (
        tiny_llama,
        {"target_modules": ["model.layers.0.self_attn.q_proj", "lm_head"], "layers_to_transform": [1]},
    ),
    (tiny_llama, {"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.5}),
    (tiny_llama, {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
    (tiny_llama, {"target_modules": ["q_proj"], "init_lora_weights": "mica"}),
    (
        tiny_gpt2,
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "rank_pattern": {"c_proj": 2}},
    ),
    (tiny_gpt2, {"target_modules": ["c_fc"], "layers_to_transform": [1], "layers_pattern": ["h"]}),
]


@pytest.mark.parametrize(("make", "options"), ORACLE)
def test_deltas_equal_those_of_peft(
    make: Callable[[], PreTrainedModel], options: dict[str, Any], tmp_path: Path
) -> None:
    base = spec_of(make())
    files = save(wrap(make(), **options), tmp_path)
    wrapped = peft.PeftModel.from_pretrained(make(), tmp_path)
    ours = read_adapter(files.config, files.weights, base, LIMITS).deltas
    theirs = {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert ours.keys() == theirs.keys()
    for name, delta in ours.items():
        expected = theirs[name].get_delta_weight("default")
        if getattr(theirs[name], "fan_in_fan_out", False):
            expected = expected.T
        torch.testing.assert_close(delta.scale * delta.b @ delta.a, expected, rtol=0, atol=1e-6)
        assert delta.a.is_contiguous()
        assert delta.b.is_contiguous()


def test_summary_and_digest(files: AdapterFiles, base: BaseSpec) -> None:
    plan = plan_adapter(parse_config(files.config, LIMITS), read_header(files.weights, LIMITS), base)
    assert plan.parameters == plan.applied == sum(tensor.numel() for tensor in files.tensors().values())
    adapter = read_adapter(files.config, files.weights, base, LIMITS, digest="known")
    assert (adapter.digest, adapter.max_rank) == ("known", 4)
    assert len(read_adapter(files.config, files.weights, base, LIMITS).digest) == 64


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_casts_and_outlives_the_file(dtype: torch.dtype | None, files: AdapterFiles, base: BaseSpec) -> None:
    adapter = read_adapter(files.config, files.weights, base, LIMITS, dtype=dtype)
    stored = files.tensors()[KEY]
    files.weights.unlink()
    assert torch.equal(adapter.deltas["model.layers.0.self_attn.q_proj"].a, stored.to(dtype or torch.float32))


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace(".weight", ".default.weight"),
    ],
    ids=["no prefix", "adapter name"],
)
def test_older_key_forms_mean_the_same(
    rename: Callable[[str], str], files: AdapterFiles, base: BaseSpec
) -> None:
    before = read_adapter(files.config, files.weights, base, LIMITS)
    files.save({rename(key): tensor for key, tensor in files.tensors().items()})
    after = read_adapter(files.config, files.weights, base, LIMITS)
    assert after.digest == before.digest
    assert after.deltas.keys() == before.deltas.keys()


def refused(files: AdapterFiles, base: BaseSpec, dtype: torch.dtype | None = None) -> str:
    with pytest.raises(InvalidAdapter) as caught:
        read_adapter(files.config, files.weights, base, LIMITS, dtype=dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_base_by_shape(files: AdapterFiles) -> None:
    message = refused(files, spec_of(tiny_llama(hidden=64), name="big"))
    assert "made for another base: 6 of its 6 modules do not fit big" in message
    assert f"tensor '{KEY}' has shape (4, 32); big needs (r, 64)" in message


def test_wrong_base_by_modules(files: AdapterFiles) -> None:
    message = refused(files, spec_of(tiny_gpt2(), name="gpt"))
    assert "made for another base" in message
    assert f"tensor '{KEY}': gpt has no such module" in message


def test_base_with_more_layers(files: AdapterFiles) -> None:
    message = refused(files, spec_of(tiny_llama(layers=4)))
    assert "targets model.layers.3.self_attn.q_proj, but the weights hold no tensors for it" in message


def change(files: AdapterFiles, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = files.tensors()
    edit(tensors)
    files.save(tensors)


def test_wrong_shape(files: AdapterFiles, base: BaseSpec) -> None:
    change(files, lambda tensors: tensors.update({KEY: torch.ones(4, 31)}))
    assert refused(files, base) == f"tensor '{KEY}' has shape (4, 31); tiny needs (r, 32)"
    change(files, lambda tensors: tensors.update({KEY: torch.ones(4, 32, 1)}))
    assert "has shape (4, 32, 1)" in refused(files, base)


def test_wrong_rank(files: AdapterFiles, base: BaseSpec) -> None:
    change(files, lambda tensors: tensors.update({KEY: torch.ones(3, 32)}))
    message = refused(files, base)
    assert (
        message == f"tensor '{KEY}' has rank 3 (shape (3, 32)); adapter_config.json gives this module rank 4"
    )


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.surprise", "unknown tensor"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "use_dora off"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "lora_bias off"),
        ("base_model.model.model.layers.0.self_attn.k_proj.bias", 'bias="none"'),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "has no lora_embedding_B beside it"),
        ("base_model.model.model.norm.weight", "fully trained modules are named in modules_to_save"),
        (
            "base_model.model.lm_head.weight",
            "has shape (4, 32); tiny has (64, 32): the vocabulary was resized",
        ),
        ("model.layers.0.self_attn.k_proj.lora_A.weight", "unknown tensor|fully trained modules"),
        ("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", "has no lora_B beside it"),
    ],
)
def test_unknown_tensors(key: str, reason: str, files: AdapterFiles, base: BaseSpec) -> None:
    change(files, lambda tensors: tensors.update({key: torch.ones(4, 32)}))
    message = refused(files, base)
    assert repr(key) in message
    assert any(part in message for part in reason.split("|"))


def test_two_adapters_in_one_file(files: AdapterFiles, base: BaseSpec) -> None:
    change(files, lambda tensors: tensors.update({KEY.replace(".weight", ".two.weight"): torch.ones(4, 32)}))
    assert "belongs to another adapter than others in the file" in refused(files, base)


def test_copied_embeddings(base: BaseSpec, tmp_path: Path) -> None:
    model = tiny_llama()
    files = save(wrap(model, target_modules=["embed_tokens"]), tmp_path, save_embedding_layers=True)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    assert key in files.tensors()
    without = read_adapter(files.config, files.weights, base, LIMITS)
    same = read_adapter(files.config, files.weights, base, LIMITS, base_weights=model.get_parameter)
    assert same.embeddings.keys() == without.embeddings.keys() == {"model.embed_tokens"}
    change(files, lambda tensors: tensors[key].mul_(1.1))
    with pytest.raises(
        InvalidAdapter, match=f"tensor '{key}' is not the base's own model.embed_tokens.weight"
    ):
        read_adapter(files.config, files.weights, base, LIMITS, base_weights=model.get_parameter)


def test_pair_for_a_module_that_cannot_be_wrapped(files: AdapterFiles, base: BaseSpec) -> None:
    norm = "base_model.model.model.norm"
    change(
        files,
        lambda tensors: tensors.update(
            {f"{norm}.lora_A.weight": torch.ones(4, 32), f"{norm}.lora_B.weight": torch.ones(32, 4)}
        ),
    )
    assert "model.norm is not a linear layer of tiny" in refused(files, base)


def test_missing_factor(files: AdapterFiles, base: BaseSpec) -> None:
    change(files, lambda tensors: tensors.pop(KEY))
    assert "lora_B.weight' (lora_B) has no lora_A beside it" in refused(files, base)


def test_no_tensors(files: AdapterFiles, base: BaseSpec) -> None:
    files.save({})
    assert refused(files, base) == "the weights hold no tensors"


def test_module_outside_the_config(files: AdapterFiles, base: BaseSpec) -> None:
    files.set(exclude_modules=["layers.0.self_attn.q_proj"])
    message = refused(files, base)
    assert f"tensor '{KEY}': adapter_config.json does not target model.layers.0.self_attn.q_proj" in message


def test_target_that_is_no_linear_layer(files: AdapterFiles, base: BaseSpec) -> None:
    files.set(target_modules=["q_proj", "v_proj", "embed_tokens"])
    assert "targets model.embed_tokens, but the weights hold no tensors for it" in refused(files, base)
    files.set(target_modules=["q_proj", "v_proj", "norm"])
    assert "target_modules matches model.norm, which is not a linear layer" in refused(files, base)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_not_finite(value: float, dtype: torch.dtype | None, files: AdapterFiles, base: BaseSpec) -> None:
    change(files, lambda tensors: tensors[KEY].__setitem__((1, 2), value))
    assert refused(files, base, dtype) == f"tensor '{KEY}' holds NaN or infinity; the training diverged"


def test_too_large_for_the_wanted_type(files: AdapterFiles, base: BaseSpec) -> None:
    change(files, lambda tensors: tensors[KEY].__setitem__((1, 2), 1e6))
    assert refused(files, base, torch.float16) == f"tensor '{KEY}' has values too large for torch.float16"
    read_adapter(files.config, files.weights, base, LIMITS, dtype=torch.bfloat16)


def test_large_values_whose_sum_overflows_are_finite(files: AdapterFiles, base: BaseSpec) -> None:
    change(files, lambda tensors: tensors[KEY].fill_(3e38))
    read_adapter(files.config, files.weights, base, LIMITS)


def test_truncated(files: AdapterFiles, base: BaseSpec) -> None:
    content = files.weights.read_bytes()
    files.weights.write_bytes(content[:-100])
    message = refused(files, base)
    assert (
        message
        == f"the safetensors file is truncated: expected {len(content)} bytes, got {len(content) - 100}"
    )


def test_pickle(files: AdapterFiles, base: BaseSpec) -> None:
    torch.save(files.tensors(), files.weights)
    assert refused(files, base) == (
        "the file is a pickle/zip checkpoint, not safetensors; re-save it with safe_serialization=True"
    )
