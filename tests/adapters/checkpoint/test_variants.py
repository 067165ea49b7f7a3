"""Every variant of LoRA as records: the same logits as PEFT's own forward."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.adapters.records import TOKENS, answers, applied, read, trained, untrained
from tests.tiny import FAMILIES, make_model

LINEARS = ["q_proj", "v_proj", "down_proj"]


@cache
def model(family: str) -> PreTrainedModel:
    if family == "qwen3_moe":
        fields = FAMILIES["llama"][1] | {
            "head_dim": 12,
            "moe_intermediate_size": 40,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 2,
        }
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **fields))
        return made.eval().requires_grad_(False)
    return make_model(family)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"target_modules": LINEARS}),
    "lora_bias": ("llama", {"target_modules": LINEARS, "lora_bias": True}),
    "lora_bias beside biases": ("gpt2", {"target_modules": ["c_attn"], "lora_bias": True}),
    "dora": ("llama", {"target_modules": LINEARS, "use_dora": True}),
    "dora with biases": ("qwen2", {"target_modules": LINEARS, "use_dora": True, "use_rslora": True}),
    "dora on conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "dora on pissa": (
        "opt",
        {"target_modules": ["q_proj", "fc1"], "use_dora": True, "init_lora_weights": "pissa"},
    ),
    "dora with trained biases": ("opt", {"target_modules": ["q_proj"], "use_dora": True, "bias": "all"}),
    "pissa": ("llama", {"target_modules": LINEARS, "init_lora_weights": "pissa", "lora_alpha": 3}),
    "pissa on conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "init_lora_weights": "pissa"}),
    "olora": ("llama", {"target_modules": LINEARS, "init_lora_weights": "olora", "use_rslora": True}),
    "kasa": ("llama", {"target_modules": LINEARS, "kasa_config": KasaConfig()}),
    "bdlora": (
        "llama",
        {
            "target_modules": LINEARS,
            "use_bdlora": BdLoraConfig(
                target_modules_bd_a=["down_proj"],
                target_modules_bd_b=["q_proj"],
                nblocks=2,
                match_strict=False,
            ),
        },
    ),
    "velora": ("llama", {"target_modules": LINEARS, "velora_config": VeloraConfig()}),
    "monteclora": ("llama", {"target_modules": LINEARS, "monteclora_config": MontecloraConfig()}),
    "mica": ("llama", {"target_modules": LINEARS, "init_lora_weights": "mica"}),
    "orthogonal": ("llama", {"target_modules": LINEARS, "init_lora_weights": "orthogonal"}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "scaled embedding": ("gemma3_text", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding and head": ("llama", {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True}),
    "norms": ("llama", {"target_modules": LINEARS, "modules_to_save": ["norm"]}),
    "norms with biases": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["ln_1", "ln_f"]}),
    "embedding and head as a whole": (
        "llama",
        {"target_modules": LINEARS, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "linear layers as a whole": (
        "llama",
        {"target_modules": LINEARS, "modules_to_save": ["1.mlp", "o_proj"]},
    ),
    "conv1d as a whole": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["c_proj"]}),
    "tied embedding as a whole": ("qwen2", {"target_modules": LINEARS, "modules_to_save": ["embed_tokens"]}),
    "tokens": ("llama", {"target_modules": LINEARS, "trainable_token_indices": [9, 2, 40]}),
    "tokens of a scaled table": (
        "gemma3_text",
        {"target_modules": ["q_proj"], "trainable_token_indices": [9, 2]},
    ),
    "tokens of table and head": (
        "llama",
        {
            "target_modules": LINEARS,
            "trainable_token_indices": {"embed_tokens": [9, 2], "lm_head": [5, 4, 3]},
        },
    ),
    "tokens of a tied table": ("qwen2", {"target_modules": LINEARS, "trainable_token_indices": [9, 2, 40]}),
    "tokens of a tied table and head": (
        "qwen2",
        {"target_modules": LINEARS, "trainable_token_indices": {"embed_tokens": [9, 2], "lm_head": [9, 2]}},
    ),
    "bias all": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "bias all beside a norm as a whole": (
        "gpt2",
        {"target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["ln_f"]},
    ),
    "bias lora_only": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"}),
    "bias lora_only and lora_bias": (
        "opt",
        {"target_modules": ["fc2"], "bias": "lora_only", "lora_bias": True},
    ),
    "experts": (
        "qwen3_moe",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    "experts turned round": (
        "gpt_oss",
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "one parameter and router": (
        "qwen3_moe",
        {"target_modules": [], "target_parameters": ["experts.down_proj", "mlp.gate.weight"]},
    ),
    "parameter of a linear layer": ("llama", {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
}
TIED = ("qwen2", "gemma3_text")


@pytest.mark.parametrize("case", CASES)
def test_the_same_logits_as_peft(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    stock = model(family)
    config = LoraConfig(**{"r": 4, "lora_alpha": 7, "task_type": "CAUSAL_LM"} | options)
    theirs = answers(trained(stock, tmp_path, config))
    weights = read(stock, tmp_path)
    ours = answers(applied(stock, weights, "lm_head" if family in TIED else None))
    # For KaSA PEFT puts the base's weights together again from their decomposition, which rounds them.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4 if case == "kasa" else 1e-5)
    assert (theirs - answers(stock)).abs().max() > 0.01
    assert all(tensor.is_contiguous() for tensor in weights.tensors())


@pytest.mark.parametrize("pruned", [False, True])
def test_adalora(pruned: bool, tmp_path: Path) -> None:
    stock = model("llama")
    config = AdaLoraConfig(
        init_r=5, target_r=3, total_step=10, lora_alpha=6, task_type="CAUSAL_LM", target_modules=LINEARS
    )
    if pruned:
        flags = [[True, False, True, False, False], [False] * 5, [True] * 5]
        config.rank_pattern = {
            f"model.layers.{layer}.self_attn.q_proj.lora_E": flags[layer] for layer in range(3)
        }
    wrapped = trained(stock, tmp_path, config)
    if pruned:
        with torch.no_grad():
            for layer, kept in enumerate(flags):
                singular = wrapped.base_model.model.model.layers[layer].self_attn.q_proj.lora_E["default"]
                singular[~torch.tensor(kept)] = 0
    weights = read(stock, tmp_path)
    torch.testing.assert_close(answers(applied(stock, weights)), answers(wrapped), rtol=1e-5, atol=1e-5)
    ranks = [weights.deltas.get(f"model.layers.{layer}.self_attn.q_proj") for layer in range(3)]
    assert [delta.rank if delta else 0 for delta in ranks] == ([2, 0, 5] if pruned else [5, 5, 5])


def test_activated_from_its_invocation_on(tmp_path: Path) -> None:
    stock = model("llama")
    start = TOKENS[0, :3].tolist()
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=LINEARS, alora_invocation_tokens=start)
    theirs = answers(trained(stock, tmp_path, config))
    weights = read(stock, tmp_path)
    assert weights.invocation == tuple(start)
    torch.testing.assert_close(answers(applied(stock, weights)), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_converted_while_saving_it_is_ordinary(init: str, tmp_path: Path) -> None:
    stock = model("llama")
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=LINEARS, init_lora_weights=init)
    wrapped = trained(stock, tmp_path / "naive", config)
    theirs = answers(wrapped)
    initial = untrained(stock, config)
    initial.peft_config["default"].init_lora_weights = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what comes next
        initial.save_pretrained(tmp_path / "initial")
        path = str(tmp_path / "initial")
        wrapped.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=path)
    folded, converted = read(stock, tmp_path / "naive"), read(stock, tmp_path / "converted")
    assert {delta.rank for delta in (*folded.deltas.values(), *converted.deltas.values())} == {8}
    for weights in (folded, converted):
        torch.testing.assert_close(answers(applied(stock, weights)), theirs, rtol=1e-5, atol=1e-5)
