"""Which linear layers of a model adapters may add to, and which of them share an input: seen, not guessed.

The stock model runs a probe prompt once. A layer that is called once with one row for each token can carry
adapters; layers that receive the very same tensor form a group, whose `A` products are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters.base import BaseKind, BaseSpec, LinearSpec
from adapters.batched import AdapterBatch, BatchedLinear, BatchSizes
from adapters.cuda.available import has_kernels
from adapters.linear import make_linear
from adapters.native.batch import NativeBatch
from adapters.native.gemm import library
from adapters.placed import Groups
from adapters.plain import PlainBatch

PROBE_TOKENS = 24
PROBE_TARGET = 10  # tokens of the decoder's side, where there are two sides

MakeBatch = Callable[
    [Groups, Mapping[str, LinearSpec], torch.dtype, torch.device, BatchSizes], AdapterBatch[Any, Any]
]
"""What makes a batch for groups of linear layers, told their shapes and the type that is computed in."""


@dataclass(frozen=True, slots=True)
class SeenLinear:
    """One linear layer of the probe run. `source` is the identity of the tensor it was called with."""

    name: str
    module: nn.Module
    rows: int
    source: int

    @property
    def weight(self) -> Tensor:
        """`(out_features, in_features)`, whichever way round the module stores it."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.detach().t() if isinstance(self.module, Conv1D) else weight.detach()

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()


@dataclass(frozen=True, slots=True)
class Survey:
    """What the probe run showed.

    Attributes:
        logits: `(vocabulary,)`, the stock model's answer after `probe`.
        tables: the embedding tables that were called with token ids.
    """

    probe: Tensor
    logits: Tensor
    seen: tuple[SeenLinear, ...]
    tables: Mapping[str, nn.Embedding]
    kind: BaseKind = "decoder"

    def describe(self, model: PreTrainedModel, *, name: str, digest: str, source: str = "") -> BaseSpec:
        """What adapters of this base are checked against. See `BaseSpec` for the arguments."""
        linears = self._linears()
        others = frozenset(path for path, _ in model.named_modules() if path and path not in linears)
        head, table = model.get_output_embeddings(), model.get_input_embeddings()
        # The config does not tell: T5's says that they are tied where the checkpoint has two matrices.
        tied = head is not None and head.weight is table.weight
        parameters = {
            path: tuple(parameter.shape) for path, parameter in model.named_parameters(remove_duplicate=False)
        }
        return BaseSpec(
            name,
            digest,
            linears,
            others,
            parameters,
            self._embeddings(),
            kind=self.kind,
            source=source,
            tied_head=tied,
        )

    def _embeddings(self) -> dict[str, tuple[int, int]]:
        return {name: (module.num_embeddings, module.embedding_dim) for name, module in self.tables.items()}

    def _linears(self) -> dict[str, LinearSpec]:
        return {
            linear.name: LinearSpec(linear.name, linear.weight.shape[1], linear.weight.shape[0])
            for linear in self.seen
        }

    def attach(
        self, model: PreTrainedModel, make_batch: MakeBatch, sizes: BatchSizes
    ) -> tuple[AdapterBatch[Any, Any], dict[str, BatchedLinear]]:
        """Put batched layers where the linear ones were. The model keeps its weights, maybe packed."""
        members: dict[int, list[SeenLinear]] = {}
        for linear in self.seen:
            members.setdefault(linear.source, []).append(linear)
        names = [tuple(linear.name for linear in group) for group in members.values()]
        batch = make_batch(names, self._linears(), model.dtype, model.device, sizes)
        head = model.get_output_embeddings()
        layers: dict[str, BatchedLinear] = {}
        for index, group in enumerate(members.values()):
            for member, linear in enumerate(group):
                frozen, on_logits = make_linear(linear.weight, linear.bias), linear.module is head
                layer = BatchedLinear(linear.name, frozen, linear.bias, batch, index, member, on_logits)
                model.set_submodule(linear.name, layer)
                layers[linear.name] = layer
        return batch, layers


def choose_batch(
    groups: Groups,
    linears: Mapping[str, LinearSpec],
    dtype: torch.dtype,
    device: torch.device,
    sizes: BatchSizes,
) -> AdapterBatch[Any, Any]:
    """The fastest way to apply adapters for this type, on this device."""
    if has_kernels(device):
        from adapters.cuda.batch import CudaBatch

        return CudaBatch(groups, linears, dtype, device, sizes)
    native = library() if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) else None
    if native is not None:
        return NativeBatch(groups, native, dtype)
    return PlainBatch(groups, dtype, pin=device.type == "cuda")


def survey(model: PreTrainedModel, kind: BaseKind = "decoder") -> Survey:
    """Run the probe prompt through the stock model, which is of this kind, and look."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randint(0, vocabulary, (PROBE_TOKENS,), generator=generator).to(model.device)
    seen: list[SeenLinear] = []
    alive: list[Tensor] = []  # an input that is freed could lend its identity to another

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        alive.append(args[0])
        seen.append(SeenLinear(name, module, args[0].numel() // args[0].shape[-1], id(args[0])))

    tables: dict[str, nn.Embedding] = {}

    inputs, row_counts, head_rows = _probe_run(kind, probe)

    def note_table(name: str, module: nn.Embedding, args: tuple[Tensor, ...]) -> None:
        if args and any(torch.equal(args[0], ids) for ids in inputs.values() if torch.is_tensor(ids)):
            tables[name] = module

    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: note(name, m, args))
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D)
    ]
    hooks += [
        module.register_forward_pre_hook(lambda m, args, name=name: note_table(name, m, args))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        with torch.inference_mode():
            logits = model(**inputs).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
    called = [linear.name for linear in seen]
    head = model.get_output_embeddings()
    fit = [
        linear
        for linear in seen
        if called.count(linear.name) == 1
        and linear.rows in ({head_rows} if linear.module is head else row_counts)
    ]
    return Survey(probe, logits, tuple(fit), tables, kind)


def _probe_run(kind: BaseKind, probe: Tensor) -> tuple[dict[str, Any], set[int], int]:
    """What the stock model is called with; the rows of a layer that runs on every token; the head's rows."""
    if kind == "encoder-decoder":
        target = probe[None, :PROBE_TARGET]
        inputs = {"input_ids": probe[None], "decoder_input_ids": target, "use_cache": False}
        return inputs, {PROBE_TOKENS, PROBE_TARGET}, PROBE_TARGET
    return {"input_ids": probe[None], "use_cache": False, "logits_to_keep": 1}, {PROBE_TOKENS}, 1
