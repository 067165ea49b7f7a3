"""What makes a run of transformers' Trainer exact: its order of data, its numbers of each step, its resume.

A mixin, so that TRL's trainers get it too:

    class PreferenceTrainer(Exact, DPOTrainer): ...

It writes no checkpoint by itself: Trainer's have pickles. Whoever watches the run calls `save_state`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback, TrainerState

from training.methods import load_trainable_state, trainable_state
from training.run.optimizer import make_optimizer, make_schedule
from training.run.order import EpochBatches, Order
from training.run.result import diverged
from training.run.state import SavedState, save_state
from training.spec import TrainSpec


@dataclass(slots=True)
class StepNumbers:
    """Of the optimizer step that is going on. Tensors until they are asked for: a GPU need not wait.

    Attributes:
        loss: the mean over the whole step.
        tokens: without padding; trained: those (or the rows) that the loss counts; right: of these, as said.
        gradient_norm: before clipping.
        rate: the learning rate.
    """

    loss: Tensor | float = 0.0
    tokens: Tensor | int = 0
    trained: Tensor | int = 0
    right: Tensor | int | None = None
    gradient_norm: float = 0.0
    rate: float = 0.0


class Exact:
    """Before a Trainer in the list of bases. `Trainer.train` is not called: `run` is."""

    args: Any
    model: Any
    state: Any
    train_dataset: Any
    data_collator: Any

    def __init__(self, *args: Any, spec: TrainSpec, order: Order, **options: Any) -> None:
        self.spec, self.order = spec, order
        self.numbers = StepNumbers()
        self._saved: SavedState | None = None
        super().__init__(*args, **options)
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]

    def run(self, saved: SavedState | None) -> None:
        """Train from the beginning, or go on.

        Raises:
            TrainingError: the loss or a gradient is no finite number.
        """
        if saved is None:
            self.train()  # type: ignore[attr-defined]
            return
        self._saved = saved
        with TemporaryDirectory() as folder:
            state = TrainerState(global_step=saved.step, train_batch_size=self.spec.batch_size)
            state.compute_steps(self.args, self.args.max_steps)
            state.save_to_json(str(Path(folder) / "trainer_state.json"))
            self.train(resume_from_checkpoint=folder)  # type: ignore[attr-defined]

    def save_state(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """What `run` needs to go on from here."""
        save_state(
            folder,
            step=self.state.global_step,
            trainable=trainable_state(self.model),
            optimizer=self.optimizer.state_dict(),
            schedule=self.lr_scheduler.state_dict(),
            progress=progress,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self.train_dataset,
            batch_sampler=EpochBatches(self.order, lambda: int(self.state.global_step)),
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # its own: the loader would draw from the run's
        )

    def create_optimizer(self, model: Any = None) -> Optimizer:
        self.optimizer: Optimizer = make_optimizer(self.spec, self.model.parameters())
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        self.lr_scheduler: LambdaLR = make_schedule(
            self.spec, optimizer or self.optimizer, num_training_steps
        )
        return self.lr_scheduler

    def get_batch_samples(self, *args: Any, **options: Any) -> tuple[list[Any], Any]:
        self.numbers = StepNumbers()
        samples, count = super().get_batch_samples(*args, **options)  # type: ignore[misc]
        return samples, count

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Tensor:
        masks = (value for name, value in inputs.items() if name.endswith("attention_mask"))
        self.numbers.tokens = sum((mask.sum() for mask in masks), self.numbers.tokens)
        loss: Tensor = super().training_step(model, inputs, *args, **options)  # type: ignore[misc]
        self.numbers.loss = self.numbers.loss + loss
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))  # type: ignore[misc]
        loss, rate = float(self.numbers.loss), float(self.lr_scheduler.get_last_lr()[0])
        if not (math.isfinite(norm) and math.isfinite(loss)):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"a gradient is {norm}"
            raise diverged(what, self.state.global_step + 1, rate, self.spec.learning_rate)
        self.numbers.loss, self.numbers.gradient_norm, self.numbers.rate = loss, norm, rate
        return norm

    def compute_loss_context_manager(self) -> ExitStack:
        stack: ExitStack = super().compute_loss_context_manager()  # type: ignore[misc]
        stack.enter_context(precision_of(self.spec, self.args.device))
        return stack

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: that takes longer than a step of a small model."""
        return 0

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable_state(self.model, self._resumed.trainable)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.optimizer.load_state_dict(self._resumed.optimizer)
            self.lr_scheduler.load_state_dict(dict(self._resumed.schedule))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._resumed.restore_random()

    @property
    def _resumed(self) -> SavedState:
        assert self._saved is not None
        return self._saved


def precision_of(spec: TrainSpec, device: torch.device) -> torch.autocast:
    """In which a model computes: what trains is float32, also on a base in bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=spec.precision == "bfloat16")


def trainer_arguments(spec: TrainSpec, steps: int, folder: Path, device: torch.device) -> dict[str, Any]:
    """Of transformers' `TrainingArguments`, or of a class that derives from it.

    Nothing of what Trainer would log, evaluate or save by itself is on.
    """
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": spec.batch_size,
        "gradient_accumulation_steps": spec.accumulation,
        "learning_rate": spec.learning_rate,
        "max_grad_norm": spec.max_grad_norm,
        "seed": spec.seed,
        "use_cpu": device.type == "cpu",
        "fp16": False,
        "bf16": False,  # see `precision_of`
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "average_tokens_across_devices": False,
    }
