"""Transformers' Trainer for rows of tokens: the loss of a step is the mean over all that its passes count."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from training.data import Tokens
from training.evaluate import pad_token
from training.methods import penalty
from training.methods.loading import device_of
from training.run.batches import collate, token_loss, trained
from training.run.exact import Exact, trainer_arguments
from training.run.order import Order
from training.spec import TrainSpec


class Supervised(Exact, Trainer):  # type: ignore[misc]
    """Trains on `Tokens`."""

    loss_is_scaled_for_ga = True

    def get_batch_samples(self, *args: Any, **options: Any) -> tuple[list[Any], Any]:
        """The batches of one optimizer step, and how many labels they have together."""
        samples, _ = super().get_batch_samples(*args, **options)
        count: Any = sum(trained(batch["labels"], self.spec.task) for batch in samples)
        self.numbers.trained = count
        return samples, count

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        labels: Tensor = inputs["labels"]
        if self.spec.task != "SEQ_2_SEQ_LM":  # there the decoder's input is made of them
            inputs = {name: value for name, value in inputs.items() if name != "labels"}
        loss, right = token_loss(model(**inputs).logits, labels, self.spec.task, num_items_in_batch)
        self.numbers.right = right if self.numbers.right is None else self.numbers.right + right
        extra = penalty(self.model)
        if extra is None:
            return loss
        extra = extra * trained(labels, self.spec.task) / num_items_in_batch
        self.numbers.loss = self.numbers.loss - extra.detach()  # what is told is the loss of the data
        whole: Tensor = loss + extra
        return whole


def make_trainer(
    spec: TrainSpec, model: Any, tokenizer: Any, rows: Sequence[Tokens], steps: int, folder: Path
) -> Supervised:
    """A trainer for a wrapped model; it is to be watched. `folder`: where Trainer may write; it does not."""
    arguments = TrainingArguments(**trainer_arguments(spec, steps, folder, device_of(spec)))
    arguments._n_gpu = min(arguments.n_gpu, 1)  # with several, Trainer would split each batch between them
    return Supervised(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=partial(collate, pad_id=pad_token(tokenizer), task=spec.task),
        spec=spec,
        order=Order(len(rows), spec.batch_size, spec.seed, spec.accumulation),
    )
