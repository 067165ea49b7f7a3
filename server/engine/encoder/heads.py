"""Task heads, computed by transformers' own classes: an adapter brings one, and maybe the base has one.

The class of the task is made without layers. In place of its body stands what hands over hidden states that
are computed already, so that pooling and activations are those of the class. Its parameters are given with
each call: heads of many adapters, with different labels, take no modules of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.func import functional_call
from transformers.modeling_outputs import BaseModelOutputWithPooling

from adapters.base import HeadSpec
from server.engine.encoder.loading import TASKS, empty_task_model

Head = Mapping[str, Tensor]
"""Parameters by their names in the task's class: `classifier.out_proj.weight`, `bert.pooler.dense.bias`."""


class _Body(nn.Module):
    """Stands where the encoder stood; the ids that it is called with are the hidden states."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, input_ids: Tensor, **_: object) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(input_ids)
        return BaseModelOutputWithPooling(last_hidden_state=input_ids, pooler_output=pooled)


class TaskHead:
    """The head of one task (a key of `TASKS`) on one base.

    Attributes:
        spec: what it is made of.
    """

    def __init__(self, task: str, config: Any, base: Head) -> None:
        """`base`: what the checkpoint has beside its body; adapters' heads may leave such parts out."""
        self._module, more = (_without_body(empty_task_model(task, config, labels=n)) for n in (2, 3))
        shapes = {name: tuple(parameter.shape) for name, parameter in self._module.named_parameters()}
        wider = {name: tuple(parameter.shape) for name, parameter in more.named_parameters()}
        self._base = {name: base[name] for name in shapes if name in base}
        self.spec = HeadSpec(
            shapes,
            frozenset(name for name, shape in shapes.items() if wider[name] != shape),
            {name: tuple(tensor.shape) for name, tensor in self._base.items()},
            tuple(dict.fromkeys(_module_name(name, config) for name in shapes)),
        )

    def logits(self, head: Head, hidden: Tensor, mask: Tensor) -> Tensor:
        """`(sequences, labels)`, or `(sequences, tokens, labels)` for TOKEN_CLS.

        Args:
            head: an adapter's own, as `check_head` wants it; empty is the base's.
            hidden: `(sequences, tokens, hidden_size)` last hidden states.
            mask: `(sequences, tokens)`, 0 where there is no token.
        """
        parameters = {**self._base, **head}
        arguments = {"input_ids": hidden, "attention_mask": mask}
        return cast(Tensor, functional_call(self._module, parameters, kwargs=arguments, strict=True).logits)


def task_heads(config: Any, base: Head) -> dict[str, TaskHead]:
    """By PEFT's name of the task."""
    return {task: TaskHead(task, config, base) for task in TASKS}


def _without_body(model: Any) -> nn.Module:
    body = getattr(model, model.base_model_prefix)
    setattr(model, model.base_model_prefix, _Body(getattr(body, "pooler", None)))
    return cast(nn.Module, model)


def _module_name(parameter: str, config: Any) -> str:
    """`pooler` of `bert.pooler.dense.weight`, `classifier` of `classifier.weight`."""
    first, second, *_ = parameter.split(".")
    return second if first == config.model_type else first
