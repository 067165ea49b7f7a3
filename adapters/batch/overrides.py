"""Rows of a step whose adapters replace parameters of a module, or add to an embedding table.

    the base's module ── y ── rows of A: computed anew with A's parameters ── rows of B: ... ── y

A module runs as it is, then a hook writes the rows anew of those adapters that change it. The hooks are there
only in steps that have such an adapter, and only on the modules that it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.batch.extras import Extras
from adapters.batch.placed import Placed
from adapters.batch.segment import Segment, coalesce
from adapters.batch.sites import Site, change_tensors
from adapters.delta import AdapterWeights, EmbeddingDelta
from adapters.errors import InvalidAdapter

Change = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]
"""Writes the rows `y` anew: of the module that gave them, called with these arguments."""


class Overrides:
    """What the adapters of the step in flight change in a model beside its linear maps."""

    def __init__(self, model: nn.Module, sites: Mapping[str, Site]) -> None:
        """`sites`: where they may, by name of the module."""
        self._model = model
        self._sites = sites
        self._changes: WeakKeyDictionary[Placed, list[tuple[Site, Change]]] = WeakKeyDictionary()
        self._hooks: list[RemovableHandle] = []

    def check(self, weights: AdapterWeights) -> None:
        """See to it that all that `weights` changes can be changed here.

        Raises:
            InvalidAdapter: naming what can't.
        """
        who = f"adapter {weights.digest[:12]}"
        for name, parameters in weights.replaced.items():
            _check_replaced(who, name, parameters, self._sites.get(name), name in weights.deltas)
        for name, delta in weights.embeddings.items():
            _check_embedding(who, name, delta, self._sites.get(name))
        for table, head in self._tied(weights):
            if head in weights.deltas:
                raise InvalidAdapter(
                    f"{who} trains tokens of {table} and adds to {head}, which is tied to it; "
                    "take one of the two out of the adapter"
                )

    def begin(self, tokens: Sequence[Segment[Placed]], logits: Sequence[Segment[Placed]]) -> None:
        """The next forward pass has these token rows and these logit rows."""
        if not any(segment.adapter is not None and segment.adapter.extras for segment in tokens):
            return
        parts: dict[Site, list[tuple[int, int, Change]]] = {}
        for on_logits, segments in ((False, tokens), (True, logits)):
            for segment in coalesce(segments):
                for site, change in self._of(segment.adapter):
                    if site.on_logits == on_logits:
                        parts.setdefault(site, []).append((segment.start, segment.stop, change))
        for site, changes in parts.items():
            rows = (logits if site.on_logits else tokens)[-1].stop
            module = self._model.get_submodule(site.name)
            hook = _Hook(site, rows, changes)
            self._hooks.append(module.register_forward_hook(hook, with_kwargs=True))

    def end(self) -> None:
        """The step is over: nothing of it stays on the modules."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _of(self, adapter: Placed | None) -> list[tuple[Site, Change]]:
        if adapter is None or adapter.extras is None:
            return []
        changes = self._changes.get(adapter)
        if changes is None:
            changes = self._changes[adapter] = list(self._made(adapter.extras))
        return changes

    def _made(self, extras: Extras) -> Iterator[tuple[Site, Change]]:
        for name, parameters in extras.replaced.items():
            site = self._sites[name]
            yield (
                site,
                _replace_linear(site, parameters) if site.twin is None else _replace(site.twin, parameters),
            )
        for name, delta in extras.embeddings.items():
            site = self._sites[name]
            yield (
                site,
                _replace_outputs(delta) if site.embed_scale is None else _embed(delta, site.embed_scale),
            )
        for table, head in self._tied(extras):
            yield self._sites[head], _replace_outputs(extras.embeddings[table])

    def _tied(self, adapter: AdapterWeights | Extras) -> Iterator[tuple[str, str]]:
        """Tables with trained tokens, and the head whose rows these are too: tied, not the adapter's own."""
        for name, delta in adapter.embeddings.items():
            site = self._sites[name]
            own = site.head in adapter.embeddings or site.head in adapter.replaced
            if site.head is not None and delta.ids is not None and not own:
                yield name, site.head


@dataclass(frozen=True, slots=True)
class _Hook:
    """Changes a module's output, `rows` rows, in the spans `start:stop` of some adapters."""

    site: Site
    rows: int
    changes: list[tuple[int, int, Change]]

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        axis = self.site.rows
        found = axis.count(output)
        if found != self.rows:
            raise RuntimeError(f"{self.site.name} got {found} rows where the step has {self.rows}")
        y = output.contiguous()
        for start, stop, change in self.changes:

            def rows(tensor: Tensor, start: int = start, stop: int = stop) -> Tensor:
                return axis.cut(tensor, start, stop)

            change(module, *change_tensors(args, kwargs, rows), rows(y))
        return y


def _replace(twin: nn.Module, parameters: Mapping[str, Tensor]) -> Change:
    """The whole module, with other parameters in its own code."""

    def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
        y.copy_(torch.func.functional_call(twin, dict(parameters), args, kwargs))

    return change


def _replace_linear(site: Site, parameters: Mapping[str, Tensor]) -> Change:
    weight, bias = parameters["weight"], parameters.get("bias")
    weight = weight.t() if site.transposed else weight

    def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
        y.copy_(F.linear(args[0], weight, _bias(module) if bias is None else bias))

    return change


def _replace_outputs(delta: EmbeddingDelta) -> Change:
    """Some outputs of the head: those of trained tokens."""
    ids, rows = delta.ids, delta.rows
    assert ids is not None
    assert rows is not None

    def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
        bias = _bias(module)
        y.index_copy_(-1, ids, F.linear(args[0], rows, None if bias is None else bias[ids]))

    return change


def _embed(delta: EmbeddingDelta, scale: float) -> Change:
    """See `EmbeddingDelta`; `scale`: what the table multiplies its rows by."""

    def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
        tokens = args[0].reshape(-1)
        if delta.ids is not None and delta.rows is not None:
            trained = tokens[:, None] == delta.ids
            own = delta.rows[trained.to(torch.uint8).argmax(1)] * scale
            y.copy_(torch.where(trained.any(1, keepdim=True), own, y.view(own.shape)).view(y.shape))
        if delta.a is not None and delta.b is not None:
            added = delta.a.index_select(1, tokens).t() @ delta.b.t()
            y.add_((added * (delta.scale * scale)).view(y.shape))

    return change


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def _check_replaced(
    who: str, name: str, parameters: Mapping[str, Tensor], site: Site | None, has_delta: bool
) -> None:
    if site is None:
        raise InvalidAdapter(
            f"{who} replaces {name}, which can't be replaced here: the model does not call it once with one "
            "row for each token; leave it out of modules_to_save"
        )
    for key, value in parameters.items():
        if site.shapes.get(key) != tuple(value.shape):
            needed = ", ".join(f"{own} {list(shape)}" for own, shape in site.shapes.items())
            raise InvalidAdapter(f"{who} replaces {name} with {key} {list(value.shape)}; it has {needed}")
    if site.twin is None and "weight" not in parameters:
        raise InvalidAdapter(f"{who} replaces {name}, but brings no weight for it")
    if has_delta:
        raise InvalidAdapter(f"{who} both replaces {name} and adds to it; keep one of the two")


def _check_embedding(who: str, name: str, delta: EmbeddingDelta, site: Site | None) -> None:
    is_table = site is not None and site.embed_scale is not None
    if site is None or not (is_table or (site.on_logits and delta.a is None and delta.ids is not None)):
        raise InvalidAdapter(f"{who} changes {name}, which the model does not call as a table of token ids")
    vocabulary, dim = site.shapes["weight"]
    if delta.a is not None and delta.b is not None:
        rank = delta.a.shape[0]
        if delta.a.shape != (rank, vocabulary) or delta.b.shape != (dim, rank):
            raise InvalidAdapter(
                f"{who} adds {list(delta.b.shape)} x {list(delta.a.shape)} to {name}, which needs "
                f"[{dim}, r] x [r, {vocabulary}]"
            )
    if delta.ids is not None and delta.rows is not None:
        ids = delta.ids.tolist()
        if not ids or len({*ids}) < len(ids) or min(ids) < 0 or max(ids) >= vocabulary:
            raise InvalidAdapter(
                f"{who} trains tokens of {name} whose ids are not different ones from 0 to {vocabulary - 1}"
            )
        if delta.rows.shape != (len(ids), dim):
            raise InvalidAdapter(
                f"{who} has {list(delta.rows.shape)} values for tokens of {name}; "
                f"they must be {[len(ids), dim]}"
            )
