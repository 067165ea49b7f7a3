"""Modules whose parameters an adapter may replace, and tables that it may add to: seen, not guessed.

Norms, tables, the output head and linear layers compute each row by itself. Where the probe run shows that a
module was called once, with one row for each token (or each logit), and that some of the rows computed alone
come out the same, the rows of one adapter can be computed anew with that adapter's parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_FIRST, _LAST = 3, 8  # the rows of the probe that are computed alone
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@dataclass(frozen=True, slots=True)
class RowAxis:
    """The dimension of a module's tensors along which the rows of a step lie.

    Attributes:
        flat: all dimensions before it are one in a step of one flat row; where sequences have a dimension of
            their own, it is one of these, and the rows are those of one sequence after another.
    """

    dim: int
    flat: bool

    def count(self, tensor: Tensor) -> int:
        """How many rows there are."""
        return math.prod(tensor.shape[: self.dim + 1]) if self.flat else tensor.shape[self.dim]

    def cut(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start:stop`, in as many dimensions; a view of a contiguous tensor."""
        if self.flat and tensor.shape[self.dim] != self.count(tensor):
            flat = tensor.reshape(-1, *tensor.shape[self.dim + 1 :])
            return flat[(None,) * self.dim + (slice(start, stop),)]
        return tensor.narrow(self.dim, start, stop - start)


@dataclass(frozen=True, eq=False)
class Site:
    """One module that an adapter may change.

    Attributes:
        rows: where the rows lie in its tensors.
        on_logits: called with the rows whose logits are computed, not with all tokens.
        shapes: of its own parameters, by name.
        twin: the module as the model had it, sharing its parameters; None is a linear map.
        transposed: a linear map that stores its weight as `(in_features, out_features)`.
        embed_scale: what a table that is called with token ids multiplies its rows by; None: it is no table.
        head: name of the output head that is tied to this table, if one is.
    """

    name: str
    rows: RowAxis
    on_logits: bool
    shapes: Mapping[str, tuple[int, ...]]
    twin: nn.Module | None
    transposed: bool = False
    embed_scale: float | None = None
    head: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module in the probe run."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    def row_axis(self, counts: Collection[int]) -> RowAxis | None:
        """Where the rows are, of which there must be one of `counts`, in all tensors of the call."""
        inputs = [value for value in (*self.args, *self.kwargs.values()) if torch.is_tensor(value)]
        if not inputs or not torch.is_tensor(self.output):
            return None
        axes = {_row_axis(tensor, counts) for tensor in (*inputs, self.output)}
        return axes.pop() if len(axes) == 1 else None


def change_tensors(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with `change` of every tensor among them."""

    def changed(value: Any) -> Any:
        return change(value) if torch.is_tensor(value) else value

    return tuple(map(changed, args)), {name: changed(value) for name, value in kwargs.items()}


@contextmanager
def watch(model: nn.Module) -> Iterator[dict[str, list[Call]]]:
    """Note all calls of modules that have parameters of their own, by name, in forward passes inside."""
    calls: dict[str, list[Call]] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # What comes after it may write into its output.
        kept = output.clone() if torch.is_tensor(output) else None
        calls.setdefault(name, []).append(Call(args, kwargs, kept))

    hooks = [
        module.register_forward_hook(
            lambda m, args, kwargs, output, name=name: note(name, args, kwargs, output), with_kwargs=True
        )
        for name, module in model.named_modules()
        if name and _own_parameters(module)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def find_sites(
    model: Any,
    calls: Mapping[str, list[Call]],
    *,
    linears: Collection[str],
    tables: Collection[str],
    row_counts: Collection[int],
    head_rows: int,
    padded: bool = False,
) -> dict[str, Site]:
    """The sites of `model`, by name of the module.

    Args:
        calls: of the probe run.
        linears: names of the linear maps that will carry adapters.
        tables: names of the tables that were called with token ids.
        row_counts: how many rows a module has that runs on every token; two, where there are two sides.
        head_rows: how many the output head has.
        padded: the model is served with several sequences side by side. A table of positions may then be
            called once for all of them, which is not one row for each token.
    """
    head = model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, Site] = {}
    for name, seen in calls.items():
        module = model.get_submodule(name)
        on_logits = module is head
        axis = _common_axis(seen, {head_rows} if on_logits else row_counts)
        if axis is None or (padded and isinstance(module, nn.Embedding) and name not in tables):
            continue
        if name in linears:
            found[name] = _linear_site(name, module, axis, on_logits)
        elif (
            not isinstance(module, nn.Linear | Conv1D)
            and not on_logits
            and _acts_by_rows(module, seen[0], axis)
        ):
            scale = _embed_scale(module, seen[0]) if name in tables else None
            tied = scale is not None and head is not None and head.weight is module.weight
            tied_head = names[id(head)] if tied else None
            shapes = {key: tuple(value.shape) for key, value in _own_parameters(module).items()}
            found[name] = Site(name, axis, False, shapes, _twin(module), False, scale, tied_head)
    return found


def _row_axis(tensor: Tensor, counts: Collection[int]) -> RowAxis | None:
    shape = tensor.shape
    if counts == {1}:  # the head's row stands where all tokens would
        return RowAxis(len(shape) - 2, math.prod(shape[:-2]) == 1) if shape[-2:-1] == (1,) else None
    dims = [dim for dim, size in enumerate(shape) if size in counts]
    return RowAxis(dims[0], math.prod(shape[: dims[0]]) == 1) if len(dims) == 1 else None


def _common_axis(calls: list[Call], counts: Collection[int]) -> RowAxis | None:
    """Where the rows are; None if that differs, or if one number of rows came twice."""
    axes = {call.row_axis(counts) for call in calls}
    axis = axes.pop() if len(axes) == 1 else None
    if axis is None or len({call.output.shape[axis.dim] for call in calls}) < len(calls):
        return None
    return axis


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))


def _linear_site(name: str, module: Any, axis: RowAxis, on_logits: bool) -> Site:
    transposed = isinstance(module, Conv1D)
    if transposed:
        shapes = {"weight": tuple(module.weight.shape)}
    else:
        shapes = {"weight": (int(module.out_features), int(module.in_features))}
    if module.bias is not None:
        shapes["bias"] = tuple(module.bias.shape)
    return Site(name, axis, on_logits, shapes, None, transposed)


def _twin(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def _acts_by_rows(module: nn.Module, call: Call, axis: RowAxis) -> bool:
    """Whether some rows give alone what they gave among all."""
    args, kwargs = change_tensors(call.args, call.kwargs, lambda tensor: axis.cut(tensor, _FIRST, _LAST))
    try:
        alone = module(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    expected = axis.cut(call.output, _FIRST, _LAST)
    tolerance = _TOLERANCE.get(expected.dtype, 0.0)
    return torch.is_tensor(alone) and (
        alone.shape == expected.shape and torch.allclose(alone, expected, rtol=tolerance, atol=tolerance)
    )


def _embed_scale(table: Any, call: Call) -> float | None:
    """What a table multiplies its rows by, as PEFT reads it too; None if it does something else."""
    scale = getattr(table, "embed_scale", 1.0)
    factor = float(scale.to(table.weight.dtype)) if torch.is_tensor(scale) else float(scale)
    expected = F.embedding(call.args[0], table.weight) * factor
    tolerance = _TOLERANCE.get(expected.dtype, 0.0)
    return factor if torch.allclose(expected, call.output, rtol=tolerance, atol=tolerance) else None
