"""Models with random weights in real shapes, and adapters for them: what is measured, made from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "135m": (
        "llama",
        {
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49152,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    ),
    "0.5b": (
        "qwen2",
        {
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "vocab_size": 151936,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    ),
}


def make_base(shape: str, folder: Path) -> Path:
    """A bfloat16 model folder with a word-per-id tokenizer. Made once; `folder` is returned."""
    if (folder / "config.json").is_file():
        return folder
    model_type, fields = SHAPES[shape]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, bos_token_id=1, eos_token_id=2, **fields)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    vocabulary = {f"t{index}": index for index in range(fields["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t2", unk_token="t0").save_pretrained(
        folder
    )
    return folder


def make_adapter(base: Path, folder: Path, rank: int, seed: int) -> Path:
    """A bfloat16 PEFT LoRA folder with random weights on all linear layers but the head."""
    if (folder / "adapter_config.json").is_file():
        return folder
    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    targets: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            key = f"base_model.model.{name}"
            a = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
            b = torch.randn(module.out_features, rank, generator=generator) * 0.02
            tensors[f"{key}.lora_A.weight"] = a.bfloat16()
            tensors[f"{key}.lora_B.weight"] = b.bfloat16()
            targets.add(name.rpartition(".")[2])
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    lora = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(targets),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(lora))
    return folder
