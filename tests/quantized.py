"""A tiny Llama on disk as it is served quantised, and as transformers, bitsandbytes and PEFT see it."""

from __future__ import annotations

import copy
import logging
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from adapters.quantized import Quantization
from server.engine import loading
from server.engine.base import ServedModel
from tests.tiny import VOCAB

CPU = torch.device("cpu")
KINDS: tuple[Quantization, ...] = ("nf4", "int8")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_FIELDS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attention_bias": True,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}


def save_model(folder: Path) -> Path:
    """A float32 checkpoint with random weights and biases."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **_FIELDS), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder


def config_of(kind: Quantization, dtype: torch.dtype = torch.float32, double: bool = False) -> Any:
    """What a user of transformers asks for it with."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double,
    )


def stock(
    folder: Path,
    kind: Quantization,
    dtype: torch.dtype = torch.float32,
    double: bool = False,
    auto_class: Any = AutoModelForCausalLM,
) -> Any:
    """Transformers' own quantised model."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its int8 product tells each cast
    model = auto_class.from_pretrained(
        folder, dtype=dtype, quantization_config=config_of(kind, dtype, double), device_map={"": "cpu"}
    )
    return model.eval()


def dequantized(folder: Path, kind: Quantization, auto_class: Any = AutoModelForCausalLM) -> Any:
    """A plain model whose linear layers have the weights that bitsandbytes' codes stand for.

    Written out from the definitions, not with bitsandbytes' functions.
    """
    quantised = stock(folder, kind, auto_class=auto_class)
    plain = auto_class.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, module in quantised.named_modules():
            if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
                target, weight = plain.get_submodule(name), weight_of(module)
                target.weight.copy_(weight.t() if isinstance(target, Conv1D) else weight)
    return plain


def weight_of(layer: Any) -> torch.Tensor:
    """The `(out_features, in_features)` weight that a layer's codes stand for."""
    if type(layer).__name__ == "Linear8bitLt":
        codes, scales = layer.weight.data, layer.weight.SCB
        exact: torch.Tensor = codes.double() * (scales.double()[:, None] / 127)
        return exact.float()
    state = layer.weight.quant_state
    packed = layer.weight.data.view(torch.uint8).reshape(-1)
    codes = torch.stack([packed >> 4, packed & 15], 1).reshape(-1).long()
    scales = state.absmax
    if state.nested:
        blocks = state.state2
        scales = blocks.code[scales.long()] * blocks.absmax.repeat_interleave(blocks.blocksize)[: len(scales)]
        scales = scales + state.offset
    values: torch.Tensor = state.code[codes] * scales.repeat_interleave(state.blocksize)[: len(codes)]
    return values.reshape(tuple(state.shape)).float()


def hold(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """Our own, as it is loaded."""
    config = loading.load_config(folder)
    return loading.load_model(folder, config, dtype, CPU, loading.choose_quantization(kind, config))


def serve(folder: Path, kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> ServedModel:
    """The same in serving form."""
    return ServedModel(hold(folder, kind, dtype), name="base", digest="checkpoint", **options)


def qlora(folder: Path, kind: Quantization, output: Path, seed: int = 1, **fields: Any) -> Path:
    """An adapter that PEFT made on the quantised model, with random weights."""
    options = {"task_type": "CAUSAL_LM", "target_modules": TARGETS, "r": 4, "lora_alpha": 8, **fields}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = prepare_model_for_kbit_training(stock(folder, kind), use_gradient_checkpointing=False)
        model = get_peft_model(base, LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(output), save_embedding_layers=False)
    return output


def with_adapter(model: Any, adapter: Path) -> Any:
    """PEFT's own view of an adapter on a copy of `model`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(model), str(adapter)).eval()


class Bases:
    """Each of these made once."""

    def __init__(self, root: Path) -> None:
        self.folder = save_model(root / "base")
        self.serve = cache(lambda kind, dtype=torch.float32: serve(self.folder, kind, dtype))
        self.hold = cache(lambda kind: hold(self.folder, kind))
        self.stock = cache(lambda kind: stock(self.folder, kind))
        self.dequantized = cache(lambda kind: dequantized(self.folder, kind))

    def oracle(self, kind: Quantization) -> nn.Module:
        """What answers as ours should: bitsandbytes' own for nf4; for int8, whose product there depends on
        the whole batch, the same weights in a plain model.
        """
        model: nn.Module = self.dequantized(kind) if kind == "int8" else self.stock(kind)
        return model
