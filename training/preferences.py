"""DPO: an adapter learns which of two answers is preferred, by TRL's trainer on a run's own order and state.

The loss of a pair is `-log sigmoid(beta * (margin - reference margin))`, where a margin is how much more
likely the chosen answer is than the rejected one, in logarithms. The reference is the base without the
adapter, or, where a run goes on from an adapter, that adapter as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer

from training.data import IGNORE, Pair
from training.evaluate import pad_token
from training.methods.loading import device_of
from training.report.evaluation import Measured
from training.run.batches import collate
from training.run.exact import Exact, trainer_arguments
from training.run.order import Order
from training.spec import TrainSpec

METRIC = "reward_accuracy"
_REFERENCE = "ref"
"""TRL's name for the frozen copy of an adapter that a run goes on from."""


class PreferenceTrainer(Exact, DPOTrainer):  # type: ignore[misc]
    """Trains on pairs. The loss of a step is the mean over all its pairs."""

    loss_is_scaled_for_ga = True

    def get_batch_samples(self, *args: Any, **options: Any) -> tuple[list[Any], Any]:
        """The batches of one optimizer step, and how many pairs they have together."""
        samples, _ = super().get_batch_samples(*args, **options)
        self.numbers.trained = sum(batch["completion_mask"].sum() for batch in samples)
        return samples, sum(_pairs(batch) for batch in samples)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        loss: Tensor = super().compute_loss(model, inputs)
        self._metrics["train"].clear()  # TRL keeps them until they are logged
        share: float = _pairs(inputs) / num_items_in_batch
        return loss * share

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # the rows are tokens already

    def _send_telemetry(self) -> None:
        """Nobody is told."""


def make_preference_trainer(
    spec: TrainSpec, model: Any, tokenizer: Any, rows: Sequence[Pair], steps: int, folder: Path
) -> PreferenceTrainer:
    """A trainer for a wrapped model; it is to be watched. `folder`: where TRL may write; it does not."""
    arguments = DPOConfig(
        **trainer_arguments(spec, steps, folder, device_of(spec)),
        beta=spec.beta,
        max_length=None,  # they are cut already
        disable_dropout=spec.lora.dropout == 0,
        gradient_checkpointing=False,  # the model has its own
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    with _as_they_are(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TRL's own, of names in transformers
        trainer = PreferenceTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([{"row": 0}]),  # TRL takes no other kind
            processing_class=tokenizer,
            data_collator=partial(collate_pairs, pad_id=pad_token(tokenizer)),
            spec=spec,
            order=Order(len(rows), spec.batch_size, spec.seed, spec.accumulation),
        )
    trainer.train_dataset = rows
    if not getattr(model, "fixed_ranks", False):
        model.delete_adapter(_REFERENCE)  # a new adapter begins as the base
    return trainer


def collate_pairs(rows: Sequence[Pair], pad_id: int) -> dict[str, Tensor]:
    """As TRL takes it: all chosen answers, then all rejected ones, each `[2 * pairs, longest]`."""
    batch = collate([*(pair.chosen for pair in rows), *(pair.rejected for pair in rows)], pad_id)
    return batch | {"completion_mask": (batch.pop("labels") != IGNORE).long()}


def measure_pairs(model: Any, rows: Sequence[Pair], spec: TrainSpec, tokenizer: Any) -> Measured:
    """DPO's loss over `rows`, and in how many pairs the chosen answer gained more than the rejected one."""
    losses, better = 0.0, 0
    for start in range(0, len(rows), spec.batch_size):
        batch = collate_pairs(rows[start : start + spec.batch_size], pad_token(tokenizer))
        batch = {name: value.to(model.device) for name, value in batch.items()}
        with torch.no_grad():
            chosen, rejected = answer_log_probs(model, batch)
            with reference(model):
                chosen_before, rejected_before = answer_log_probs(model, batch)
        gains = spec.beta * ((chosen - chosen_before) - (rejected - rejected_before))
        losses += float(-F.logsigmoid(gains).sum())
        better += int((gains > 0).sum())
    return Measured(losses / len(rows), None, METRIC, better / len(rows))


def answer_log_probs(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`(pairs,)` of the chosen and of the rejected answers: the sums over their tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    tokens, counted = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:]
    each = logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    chosen, rejected = (each * counted).sum(1).chunk(2)
    return chosen, rejected


def reference(model: Any) -> AbstractContextManager[object]:
    """Inside it the model is what DPO compares with."""
    if _REFERENCE not in model.peft_config:
        disabled: AbstractContextManager[object] = model.disable_adapter()
        return disabled
    return _as_reference(model)


@contextmanager
def _as_reference(model: Any) -> Iterator[None]:
    trained = [value for value in model.parameters() if value.requires_grad]
    model.set_adapter(_REFERENCE)
    try:
        yield
    finally:
        model.set_adapter("default")
        for value in model.parameters():
            value.requires_grad_(False)
        for value in trained:
            value.requires_grad_(True)


@contextmanager
def _as_they_are(model: Any) -> Iterator[None]:
    """What trains stays as it is, in float32: TRL rounds it to bfloat16 on a quantised base."""
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    yield
    for name, value in model.named_parameters():
        if name in before:
            value.data = before[name]


def _pairs(batch: dict[str, Tensor]) -> int:
    return batch["input_ids"].shape[0] // 2
