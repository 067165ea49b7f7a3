"""How well a model does on the validation rows: loss, token accuracy, the task's metric, sample answers.

The run that is going on does not notice: modules go back to the mode that they were in, and no random
generator moves.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.data import IGNORE, Tokens
from training.evaluate import pad_token, stop_tokens
from training.events import Evaluated, Sample
from training.report.questions import ask, continuations, evenly, questions
from training.report.scores import accuracy, macro_f1, micro_f1
from training.spec import TaskName, TrainSpec, require

ASKED = 64
"""Rows that are answered at an evaluation, at most."""
OUTSIDE = "O"
"""The label of tokens that are nothing, by the usual convention."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one look at the validation rows gave; the fields are those of `Evaluated`."""

    loss: float
    token_accuracy: float | None
    metric: str
    score: float | None
    samples: tuple[Sample, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)


Measure = Callable[[Any], Measured]
"""Of a model: for objectives whose rows are not `Tokens`, such as preferences."""


@dataclass(slots=True)
class Tally:
    """Sums over all trained tokens (or rows).

    Attributes:
        pairs: for classes: how often which was wanted and said.
        said: for classes: what was said of each row, its counted places in order.
    """

    loss: float = 0.0
    count: int = 0
    right: int = 0
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    said: dict[int, list[int]] = field(default_factory=dict)


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Tokens],
    spec: TrainSpec,
    step: int,
    samples: int = 3,
    *,
    asked: int = ASKED,
    measure: Measure | None = None,
) -> Evaluated:
    """Look at the validation rows without disturbing the run.

    The loss is the mean over all trained tokens of all rows, whatever the batch size. Generative tasks are
    also asked at most `asked` of the rows, greedily.

    Args:
        samples: how many answers to show.
        measure: looks in place of all this, for objectives whose rows are not `Tokens`.

    Raises:
        ValueError: no rows.
    """
    with undisturbed(model):
        if measure is not None:
            found = measure(model)
        else:
            require(bool(rows), "there are no validation rows to evaluate on")
            found = _measure(model, tokenizer, rows, spec, samples, asked)
    return Evaluated(
        step, found.loss, found.token_accuracy, found.metric, found.score, found.samples, found.scores
    )


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """The model is in evaluation mode, without gradients, and after it all is as it was before."""
    modes = {module: module.training for module in model.modules()}
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = {weight.device for weight in model.parameters() if weight.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        random.setstate(python)
        numpy.random.set_state(numbers)


def tally(model: Any, rows: Sequence[Tokens], task: TaskName, pad: int, batch_size: int) -> Tally:
    """Loss and right answers, summed over all rows in batches of similar lengths."""
    sums = Tally()
    classes = task in ("SEQ_CLS", "TOKEN_CLS")
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs, labels = _collate([rows[index] for index in batch], task, pad)
        logits: Tensor = model(**{name: value.to(device) for name, value in inputs.items()}).logits
        if task == "CAUSAL_LM":  # each place says the next token
            logits, labels = logits[:, :-1], labels[:, 1:]
        labels = labels.to(logits.device)
        counted = labels != IGNORE
        chosen, wanted = logits[counted].float(), labels[counted]
        said = chosen.argmax(-1)
        sums.loss += float(cross_entropy(chosen, wanted, reduction="sum"))
        sums.count += len(wanted)
        sums.right += int((said == wanted).sum())
        if classes:
            sums.pairs.update(zip(wanted.tolist(), said.tolist(), strict=True))
            parts = torch.split(said, counted.reshape(len(batch), -1).sum(1).tolist())
            sums.said.update((index, part.tolist()) for index, part in zip(batch, parts, strict=True))
    return sums


def _measure(
    model: Any, tokenizer: Any, rows: Sequence[Tokens], spec: TrainSpec, samples: int, asked: int
) -> Measured:
    pad = pad_token(tokenizer)
    sums = tally(model, rows, spec.task, pad, spec.batch_size)
    require(sums.count > 0, "no validation row has a trained token")
    loss, right = sums.loss / sums.count, sums.right / sums.count
    if spec.task == "SEQ_CLS":
        shown = _labelled(model, tokenizer, rows, sums, samples, spec.task)
        return Measured(loss, None, "accuracy", right, shown, {"macro_f1": macro_f1(sums.pairs)})
    if spec.task == "TOKEN_CLS":
        shown = _labelled(model, tokenizer, rows, sums, samples, spec.task)
        score = micro_f1(sums.pairs, entities(model))
        return Measured(loss, right, "f1", score, shown, {"accuracy": accuracy(sums.pairs)})
    stop = stop_tokens(model, tokenizer)
    prompts = questions(rows, spec.task, tokenizer.all_special_ids, asked)
    scored = bool(prompts)
    prompts = prompts or continuations(rows, samples)
    found = ask(model, tokenizer, prompts, stop, pad, spec.batch_size)
    shown = tuple(sample for sample, _ in evenly(found, samples))
    if not scored:
        return Measured(loss, right, "token_accuracy", right, shown)
    return Measured(loss, right, "exact_match", sum(same for _, same in found) / len(found), shown)


def entities(model: Any) -> set[int]:
    """Classes that say something of a token: all but `O`."""
    return {int(index) for index, name in model.config.id2label.items() if name != OUTSIDE}


def _labelled(
    model: Any, tokenizer: Any, rows: Sequence[Tokens], sums: Tally, most: int, task: TaskName
) -> tuple[Sample, ...]:
    """Rows with the names of what was wanted and said; for tokens, of those that are not `O`."""
    names = {int(index): str(name) for index, name in model.config.id2label.items()}
    found = []
    for index in evenly(range(len(rows)), most):
        row, said = rows[index], sums.said[index]
        wanted = [label for label in row.labels if label != IGNORE]
        text = tokenizer.decode(row.ids, skip_special_tokens=True)
        if task == "SEQ_CLS":
            found.append(Sample(text, names[wanted[0]], names[said[0]]))
        else:
            places = [place for place, label in enumerate(row.labels) if label != IGNORE]
            words = [tokenizer.decode([row.ids[place]]).strip() for place in places]
            found.append(Sample(text, _marked(words, wanted, names), _marked(words, said, names)))
    return tuple(found)


def _marked(words: Sequence[str], classes: Sequence[int], names: dict[int, str]) -> str:
    marked = zip(words, (names[each] for each in classes), strict=True)
    return " ".join(f"{word}/{name}" for word, name in marked if name != OUTSIDE)


def _collate(rows: Sequence[Tokens], task: TaskName, pad: int) -> tuple[dict[str, Tensor], Tensor]:
    """What the model takes, padded on the right; labels as `[rows, places]`, or `[rows]` for SEQ_CLS."""
    ids = _padded([row.ids for row in rows], pad)
    mask = _padded([[1] * len(row.ids) for row in rows], 0)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if task == "SEQ_CLS":
        return inputs, torch.tensor([row.labels[0] for row in rows])
    labels = _padded([row.labels for row in rows], IGNORE)
    if task == "SEQ_2_SEQ_LM":
        inputs["labels"] = labels  # the model makes the decoder's input of them
    return inputs, labels


def _padded(rows: Sequence[list[int]], fill: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])
