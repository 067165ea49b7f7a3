"""Tiny bases and adapters; PEFT makes the adapters, and is what ours are compared with."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from adapters.base import BaseSpec
from adapters.batch.survey import survey
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.limits import AdapterLimits

LIMITS = AdapterLimits()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_llama(hidden: int = 32, layers: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


def spec_of(model: PreTrainedModel, name: str = "tiny", digest: str = "b" * 64) -> BaseSpec:
    return survey(model).describe(model, name=name, digest=digest)


def wrap(model: PreTrainedModel, seed: int = 1, **options: Any) -> Any:
    """`model` as a PEFT model whose A and B are all random, so that no delta is zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of fan_in_fan_out, which it then corrects itself
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"task_type": "CAUSAL_LM"} | options))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return wrapped


@dataclass
class AdapterFiles:
    """A saved adapter folder that tests change in place."""

    folder: Path

    @property
    def config(self) -> bytes:
        return (self.folder / CONFIG_FILE).read_bytes()

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS_FILE

    def set(self, **fields: object) -> bytes:
        """The config with some fields changed."""
        text = json.dumps(json.loads(self.config) | fields)
        (self.folder / CONFIG_FILE).write_text(text)
        return text.encode()

    def tensors(self) -> dict[str, torch.Tensor]:
        return {key: tensor.clone() for key, tensor in load_file(self.weights).items()}

    def save(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
        save_file(tensors, self.weights, metadata)


def save(wrapped: Any, folder: Path, save_embedding_layers: bool = False) -> AdapterFiles:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return AdapterFiles(folder)


def plain_adapter(folder: Path, seed: int = 1, **options: Any) -> AdapterFiles:
    """A rank 4 adapter on q_proj and v_proj of the tiny Llama."""
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    return save(wrap(tiny_llama(), seed, **defaults | options), folder)


@pytest.fixture(scope="session")
def base() -> BaseSpec:
    return spec_of(tiny_llama())


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return plain_adapter(tmp_path / "adapter")
