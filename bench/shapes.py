"""Models with random weights in real shapes, and adapters for them: what is measured, made from nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SHIPPED = "shipped"
"""The base of the repository in place of a shape."""
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
    "7b": (
        "llama",
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "tiny": (  # to see that a benchmark runs; its figures mean nothing
        "llama",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "vocab_size": 512,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    ),
}


def make_base(shape: str, folder: Path) -> Path:
    """A bfloat16 model folder whose tokenizer has a word per id, `t0`, `t1`, ... Made once, and returned."""
    if (folder / "config.json").is_file():
        return folder
    model_type, fields = SHAPES[shape]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, bos_token_id=1, eos_token_id=2, **fields)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    vocabulary = {f"t{index}": index for index in range(fields["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t2", unk_token="t0").save_pretrained(
        folder
    )
    return folder


@dataclass(frozen=True, slots=True)
class Cost:
    """What one token costs in a decode step, save attention over what came before it.

    Attributes:
        weights: numbers in the linear layers and the head, read once in a step and multiplied by each row.
        lora: numbers in the matrices of an adapter of rank 1 on all linear layers but the head.
        kv: numbers that one token leaves in the KV cache.
        attention: multiply-adds of one token with one token of the cache.
    """

    weights: int
    lora: int
    kv: int
    attention: int


def cost(shape: str) -> Cost:
    """Counted from the shape alone, without making the model."""
    model_type, fields = SHAPES[shape]
    model = _skeleton(AutoConfig.for_model(model_type, **fields))
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inner = [module for module in linears if module is not model.get_output_embeddings()]
    layers, heads = fields["num_hidden_layers"], fields["num_attention_heads"]
    head = fields["hidden_size"] // heads
    return Cost(
        sum(module.weight.numel() for module in linears),
        sum(module.in_features + module.out_features for module in inner),
        2 * layers * fields["num_key_value_heads"] * head,
        2 * layers * heads * head,
    )


def _skeleton(config: Any) -> Any:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def make_adapter(base: Path, folder: Path, rank: int, seed: int) -> Path:
    """A bfloat16 PEFT LoRA folder with random weights on all linear layers but the head."""
    if (folder / "adapter_config.json").is_file():
        return folder
    model = _skeleton(AutoConfig.from_pretrained(base))
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


def make_copies(adapter: Path, folder: Path, count: int) -> list[Path]:
    """`count` adapters with the weights of `adapter` save one number each: other content, equal cost."""
    if not (folder / f"{count - 1}").is_dir():
        tensors = load_file(adapter / "adapter_model.safetensors")
        changed = next(iter(tensors.values())).view(-1)
        for number in range(count):
            target = folder / str(number)
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(adapter / "adapter_config.json", target / "adapter_config.json")
            # Small bfloat16 numbers, one after another by their bits.
            changed.view(torch.int16)[0] = 0x3800 + number
            save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return [folder / str(number) for number in range(count)]
