"""The optimizer and the schedule of a spec: for runs alone and together."""

from __future__ import annotations

from collections.abc import Iterable

from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from training.rates import rate
from training.spec import TrainSpec


def make_optimizer(spec: TrainSpec, parameters: Iterable[Parameter]) -> Optimizer:
    """Over the parameters that are trained. Vectors, such as biases and norms, have no weight decay."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [each for each in trained if each.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [each for each in trained if each.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if spec.optimizer == "sgd":
        return SGD(groups, lr=spec.learning_rate)
    return AdamW(groups, lr=spec.learning_rate)


def make_schedule(spec: TrainSpec, optimizer: Optimizer, steps: int) -> LambdaLR:
    """Of a run of `steps` optimizer steps."""
    return LambdaLR(optimizer, rate(spec.schedule, steps, round(spec.warmup * steps)))
