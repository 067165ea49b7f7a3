"""Forward passes of several jobs at once: what goes into one, and the loss of each job in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adapters.batch.trainable import Share, TrainableAdapter, TrainableLinear
from training.data import IGNORE, Tokens


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one job in a pass.

    Attributes:
        labels: that count in the whole optimizer step, by which the loss is divided.
    """

    job: str
    adapter: TrainableAdapter
    rows: Sequence[Tokens]
    labels: int

    @property
    def width(self) -> int:
        return max(len(row.ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class PartLoss:
    """What a pass gave for a part.

    Attributes:
        loss: summed over its labels, and divided by those of the whole step.
        correct: labels of its own that the model would have said.
    """

    part: Part
    loss: Tensor
    correct: int


def plan_passes(parts: Sequence[Part], most_tokens: int) -> list[list[Part]]:
    """The parts in passes of at most `most_tokens` tokens with padding; one that has more goes alone.

    Parts of like width go together, for little padding; those with as many rows stand side by side.
    """
    passes: list[list[Part]] = []
    rows = 0
    for part in sorted(parts, key=lambda part: part.width):
        rows += len(part.rows)
        if not passes or rows * part.width > most_tokens:
            passes.append([])
            rows = len(part.rows)
        passes[-1].append(part)
    return [sorted(found, key=lambda part: len(part.rows)) for found in passes]


Chance = Callable[[Sequence[Share], int], AbstractContextManager[Any]]
"""What a pass runs in; see `chance.py`."""


def shares_of(parts: Sequence[Part]) -> tuple[list[Share], int]:
    """What `TrainableBatch.passing` wants for a pass of these parts."""
    shares = [Share(part.adapter, len(part.rows), part.width) for part in parts]
    return shares, max(share.width for share in shares)


def run_pass(model: Any, parts: Sequence[Part], chance: Chance) -> list[PartLoss]:
    """One forward pass of a causal model, inside `passing`.

    What stands behind a token does not reach it, so padding on the right needs no mask. Only tokens before a
    label go through the output head.
    """
    shares, width = shares_of(parts)
    rows = [row for part in parts for row in part.rows]
    device = model.device
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=device)
    places, wanted, counts = _labelled(parts, width)
    only_rows = _only_rows(model, torch.tensor(places, device=device))
    with chance(shares, width), only_rows as choose:
        logits = choose(model(input_ids=ids, use_cache=False).logits)
    targets = torch.tensor(wanted, device=device)
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = torch.split(cross_entropy(exact, targets, reduction="none"), counts)
    said = torch.split(logits.detach().argmax(-1) == targets, counts)
    return [
        PartLoss(part, loss.sum() / part.labels, int(right.sum()))
        for part, loss, right in zip(parts, losses, said, strict=True)
    ]


def labels_of(rows: Sequence[Tokens]) -> int:
    """How many tokens count in the loss: nothing says the first one of a row."""
    return sum(label != IGNORE for row in rows for label in row.labels[1:])


def _labelled(parts: Sequence[Part], width: int) -> tuple[list[int], list[int], list[int]]:
    """Where in the flat pass tokens before a label are, these labels, and how many of them each part has."""
    places: list[int] = []
    wanted: list[int] = []
    counts: list[int] = []
    start = 0
    for part in parts:
        before = len(wanted)
        for row in part.rows:
            found = [(start + at, label) for at, label in enumerate(row.labels[1:]) if label != IGNORE]
            places += [place for place, _ in found]
            wanted += [label for _, label in found]
            start += width
        counts.append(len(wanted) - before)
    return places, wanted, counts


@contextmanager
def _only_rows(model: Any, places: Tensor) -> Iterator[Any]:
    """The output head is called with the rows of `places` alone. A head that carries adapters sees all rows.

    Yields what makes `(places, vocabulary)` of the model's logits.
    """

    def chosen(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, tensor.shape[-1])[places]

    head: nn.Module | None = model.get_output_embeddings()
    if head is None or isinstance(head, TrainableLinear):
        yield chosen
        return
    hook = head.register_forward_pre_hook(lambda _, args: (chosen(args[0])[None], *args[1:]))
    try:
        yield lambda logits: logits[0]
    finally:
        hook.remove()
