"""Tiny encoders, PEFT adapters for them with heads of their own, and PEFT's answers."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from adapters.batch.placed import Placed
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights
from adapters.limits import AdapterLimits
from adapters.weights import base_weights
from server.engine.encoder.answers import answers
from server.engine.encoder.loading import load_encoder
from server.engine.encoder.model import EncoderModel
from server.engine.encoder.sequence import EncoderSequence
from server.engine.request import PoolingRequest, PoolingTask

VOCAB = 96
CPU = torch.device("cpu")
CLASSES: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "MASKED_LM": AutoModelForMaskedLM,
    "BODY": AutoModel,
}
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 16,
    "type_vocab_size": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _SIZES),
    "roberta": ("roberta", {**_SIZES, "pad_token_id": 1}),
    "camembert": ("camembert", {**_SIZES, "pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", {**_SIZES, "pad_token_id": 1}),
    "electra": ("electra", {**_SIZES, "embedding_size": 16}),
    "distilbert": ("distilbert", {**_SIZES, "dim": 32, "hidden_dim": 48}),
    "deberta": ("deberta", {**_SIZES, **_DISENTANGLED, "pooler_hidden_size": 32}),
    "deberta-v2": (
        "deberta-v2",
        {**_SIZES, **_DISENTANGLED, "pooler_hidden_size": 32, "conv_kernel_size": 3},
    ),
    "deberta-v3": (
        "deberta-v2",
        {
            **_SIZES,
            **_DISENTANGLED,
            "pooler_hidden_size": 32,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 6,
            "position_biased_input": False,
        },
    ),
}
ATTENTION = {
    "distilbert": ["q_lin", "v_lin"],
    "deberta": ["in_proj", "pos_proj", "pos_q_proj"],
    "deberta-v2": ["query_proj", "key_proj", "pos_key_proj", "pos_query_proj"],
    "deberta-v3": ["query_proj", "key_proj", "value_proj"],
}


def save_base(family: str, kind: str, folder: Path, labels: int = 2) -> Path:
    """A random checkpoint of one of `CLASSES` in `folder`; no bias and no norm is a no-op."""
    model_type, fields = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    config.num_labels = labels
    model = CLASSES[kind].from_config(config, dtype=torch.float32)
    _shake(model, [name for name, p in model.named_parameters() if p.dim() == 1], 0, 0.3)
    model.save_pretrained(folder)
    return folder


def serve(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> EncoderModel:
    """The checkpoint in `folder` in serving form."""
    encoder = load_encoder(folder, AutoConfig.from_pretrained(folder), dtype, CPU)
    return EncoderModel(encoder, name="base", digest="d", **options)


class Trained:
    """A PEFT adapter on a base, in a folder: random weights, and a random head with labels of its own."""

    def __init__(self, base: Path, folder: Path, task: str, labels: int, seed: int, **lora: Any) -> None:
        self.base, self.folder, self.task, self.labels = base, folder, task, labels
        config = LoraConfig(**{"task_type": task, "r": 4, "lora_alpha": 8, **lora})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT looks for the base's config on the hub
            peft = get_peft_model(self._stock(), config)
            drawn = [
                name for name, _ in peft.named_parameters() if "lora_" in name or "modules_to_save" in name
            ]
            _shake(peft, drawn, seed, 0.25)
            peft.save_pretrained(folder)
        self.oracle = peft.eval()

    def _stock(self) -> Any:
        kind = self.task if self.task in CLASSES else "BODY"
        extra = {} if kind == "BODY" else {"num_labels": self.labels}
        torch.manual_seed(1)  # of what the checkpoint lacks
        return CLASSES[kind].from_pretrained(self.base, ignore_mismatched_sizes=True, **extra)

    @torch.inference_mode()
    def expected(self, prompt: Sequence[int]) -> Tensor:
        """PEFT's logits of the prompt alone; `(labels,)` or `(tokens, labels)`."""
        logits: Tensor = self.oracle(input_ids=torch.tensor([list(prompt)])).logits[0]
        return logits

    def weights(self, model: EncoderModel) -> AdapterWeights:
        """What the product's own reader makes of it. The folder's name is the digest."""
        return read_adapter(
            (self.folder / CONFIG_FILE).read_bytes(),
            self.folder / WEIGHTS_FILE,
            model.spec,
            AdapterLimits(),
            digest=self.folder.name,
            base_weights=base_weights(model.model, model.linears),
        )


def ask(
    request_id: str, prompt: Sequence[int], task: PoolingTask, adapter: str | None = None, **more: Any
) -> Any:
    return PoolingRequest(request_id, tuple(prompt), task, **{"pooling": "cls", **more}, adapter=adapter)


def answer(
    model: EncoderModel, requests: Sequence[PoolingRequest], placed: dict[str, Placed]
) -> list[Tensor]:
    """What one pass answers, as `(vectors, width)`."""
    sequences = [EncoderSequence(request) for request in requests]
    for sequence in sequences:
        sequence.adapter = placed[sequence.request.adapter] if sequence.request.adapter else None
    padded = model.pad([s.request.prompt for s in sequences], [s.adapter for s in sequences])
    outputs = answers(model, sequences, model.encode(padded), padded.mask)
    assert [output.request_id for output in outputs] == [request.request_id for request in requests]
    return [torch.tensor(output.vectors) for output in outputs]


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random token ids above the special ones."""
    chance = random.Random(seed)
    return [[chance.randrange(3, VOCAB) for _ in range(length)] for length in lengths]


def _shake(model: Any, names: Sequence[str], seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            parameters[name].add_(scale * torch.randn(parameters[name].shape, generator=generator))
