"""Rows to tensors, and the loss of what the model says to them, for each task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.data import IGNORE, Tokens
from training.spec import TaskName


def collate(rows: Sequence[Tokens], pad_id: int, task: TaskName = "CAUSAL_LM") -> dict[str, Tensor]:
    """A batch padded on the right, with a mask, and labels that leave the padding out.

    `input_ids` and `attention_mask` are `[rows, longest]`; `labels` are so too, or `[rows, longest label]`
    for SEQ_2_SEQ_LM, or `[rows]` for SEQ_CLS.
    """
    batch = {
        "input_ids": _padded([row.ids for row in rows], pad_id),
        "attention_mask": _padded([[1] * len(row.ids) for row in rows], 0),
    }
    if task == "SEQ_CLS":
        return batch | {"labels": torch.tensor([row.labels[0] for row in rows])}
    return batch | {"labels": _padded([row.labels for row in rows], IGNORE)}


def trained(labels: Tensor, task: TaskName) -> Tensor:
    """How many labels the loss counts. A causal model says the next token, so nothing says the first."""
    return (_aligned(labels, task) != IGNORE).sum()


def token_loss(logits: Tensor, labels: Tensor, task: TaskName, count: Tensor | int) -> tuple[Tensor, Tensor]:
    """The summed loss of a forward pass over `count`, and how many of its labels the model would have said.

    With the labels of all passes of a step as `count`, the sum of their losses is the mean over the step.
    """
    labels = _aligned(labels, task).to(logits.device)
    if task == "CAUSAL_LM":
        logits = logits[:, :-1]
    counted = labels != IGNORE
    chosen, wanted = logits[counted].float(), labels[counted]
    loss = cross_entropy(chosen, wanted, reduction="sum") / count
    return loss, (chosen.detach().argmax(-1) == wanted).sum()


def _aligned(labels: Tensor, task: TaskName) -> Tensor:
    return labels[:, 1:] if task == "CAUSAL_LM" else labels


def _padded(rows: Sequence[list[int]], fill: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])
