"""From a folder to an encoder: its body under the names of the task classes, and the head it may bring along.

PEFT adapters are trained on classes such as `RobertaForSequenceClassification`, whose modules have names like
`roberta.encoder.layer.0.attention.self.query`. A checkpoint of any class with such a body is loaded, and its
body is put into the token classifier's class with nothing for a classifier: what that class calls logits are
then the last hidden states.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from server.engine.loading import read_checkpoint, refuse_missing

TASKS: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
}
"""PEFT's names of the tasks that have a head, and transformers' classes for them."""

_TASK_OF = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded base.

    Attributes:
        model: its `logits` are last hidden states, `(sequences, tokens, hidden_size)`. It has no pooler.
        head: parameters of the checkpoint beside its body, by their names in the task classes.
        task, labels: see `BaseSpec`.
    """

    model: PreTrainedModel
    head: Mapping[str, Tensor]
    task: str | None
    labels: tuple[str, ...]


def load_encoder(folder: Path, config: Any, dtype: torch.dtype, device: torch.device) -> Encoder:
    """The base in evaluation mode, frozen.

    Raises:
        UnsupportedModel: the weights can't be read, or are not all there.
    """
    task = checkpoint_task(config)
    checkpoint, missing = read_checkpoint(TASKS[task] if task else AutoModel, folder, config, dtype)
    # Most checkpoints of language models have no pooler. Then nobody gets one.
    pooler = frozenset(name for name in missing if not task and name.startswith("pooler."))
    refuse_missing(folder, missing - pooler)
    # DeBERTa has biases that stay float32, whatever the type that is asked for.
    checkpoint.eval().requires_grad_(False).to(device=device, dtype=dtype)
    head = {} if pooler else dict(_beside_body(checkpoint, whole=task is not None))
    body = checkpoint if task is None else getattr(checkpoint, checkpoint.base_model_prefix)
    if hasattr(body, "pooler"):
        body.pooler = None
    labels = tuple(str(config.id2label[index]) for index in sorted(config.id2label)) if task else ()
    return Encoder(_named_body(body, config), head, task, labels)


def checkpoint_task(config: Any) -> str | None:
    """PEFT's name of the task whose head the checkpoint holds, by the class that saved it."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    return next((task for end, task in _TASK_OF.items() if architecture.endswith(end)), None)


def empty_task_model(task: str, config: Any, *, labels: int) -> PreTrainedModel:
    """The class of `task` (a key of `TASKS`) without layers, and without memory for its parameters."""
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.num_labels = 0, labels
    with torch.device("meta"):
        model: PreTrainedModel = TASKS[task].from_config(small)
    return model.eval().requires_grad_(False)


def _beside_body(checkpoint: PreTrainedModel, *, whole: bool) -> Iterator[tuple[str, Tensor]]:
    """A pooler and heads, named as in a task class. `whole`: it is one; else the body alone."""
    prefix = f"{checkpoint.base_model_prefix}."
    for name, parameter in checkpoint.named_parameters():
        full = name if whole else prefix + name
        if full.startswith(f"{prefix}pooler.") or not full.startswith(prefix):
            yield full, parameter.detach()


def _named_body(body: PreTrainedModel, config: Any) -> PreTrainedModel:
    model = empty_task_model("TOKEN_CLS", config, labels=1)
    setattr(model, model.base_model_prefix, body)
    model.classifier = nn.Identity()
    model.config = config
    return model
