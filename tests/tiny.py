"""Tiny random models and PEFT adapters for them: what tests serve, and the oracle they compare with."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from adapters.base import BaseSpec
from adapters.delta import AdapterWeights, ModuleDelta

VOCAB = 96

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**_LLAMA_LIKE, "head_dim": 16, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_LLAMA_LIKE, "head_dim": 12, "sliding_window": 9}),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": VOCAB,
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.2,
        },
    ),
    "opt": (
        "opt",
        {
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "word_embed_proj_dim": 48,
            "ffn_dim": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "init_std": 0.2,
        },
    ),
    "gemma2": (
        "gemma2",
        {
            **_LLAMA_LIKE,
            "num_hidden_layers": 4,
            "head_dim": 12,
            "sliding_window": 9,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 20.0,
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            **_LLAMA_LIKE,
            "num_hidden_layers": 4,
            "head_dim": 12,
            "sliding_window": 9,
            "query_pre_attn_scalar": 12,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            **_LLAMA_LIKE,
            "num_hidden_layers": 4,
            "head_dim": 12,
            "sliding_window": 9,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "phi3": ("phi3", {**_LLAMA_LIKE, "tie_word_embeddings": False}),
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 9,
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.2,
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {
            **{field: value for field, value in _LLAMA_LIKE.items() if field != "num_key_value_heads"},
            "tie_word_embeddings": False,
        },
    ),
    "mixtral": (
        "mixtral",
        {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **_LLAMA_LIKE,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **_LLAMA_LIKE,
            "num_key_value_heads": 4,
            "q_lora_rank": 20,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "moe_intermediate_size": 40,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "tie_word_embeddings": False,
        },
    ),
}


def make_model(family: str, seed: int = 0) -> Any:
    """A random float32 model in evaluation mode. Biases and norms are random too, so that none is a no-op."""
    model_type, fields = FAMILIES[family]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "sinks" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.generation_config.eos_token_id = None  # generate would fill it in where a test wants no end
    return model.eval().requires_grad_(False)


def make_adapter(model: Any, folder: Path, seed: int, **config: Any) -> Path:
    """A PEFT adapter folder with random, non-zero weights on a copy of `model`. Returns `folder`."""
    lora = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4, **config})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of fan_in_fan_out, which it then corrects itself
        torch.manual_seed(seed)  # PEFT draws what it begins with
        peft_model = get_peft_model(copy.deepcopy(model), lora)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT looks for the base's config on the hub
        peft_model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def peft_model(model: Any, folder: Path) -> Any:
    """PEFT's own view of the adapter, on a copy of `model`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


def greedy(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    """Transformers' own greedy answer, never ended early."""
    ids = torch.tensor([list(prompt)])
    config = transformers.GenerationConfig(
        max_new_tokens=tokens, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None
    )
    out: Tensor = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


def read_simple(folder: Path, base: BaseSpec, digest: str) -> AdapterWeights:
    """A plain-LoRA reader for engine tests: the product's reader has its own tests."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    deltas = {
        name: ModuleDelta(
            tensors[f"base_model.model.{name}.lora_A.weight"],
            tensors[f"base_model.model.{name}.lora_B.weight"],
            scale,
        )
        for name in base.linears
        if f"base_model.model.{name}.lora_A.weight" in tensors
    }
    return AdapterWeights(digest, deltas)


Loader = Callable[[str], AdapterWeights]
