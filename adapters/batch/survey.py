"""Which linear layers of a model adapters may add to, and which of them share an input: seen, not guessed.

The stock model runs a probe prompt once. A layer that is called once with one row for each token can carry
adapters; layers that receive the very same tensor form a group, whose `A` products are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters.base import BaseKind, BaseSpec, LinearSpec
from adapters.batch.batched import AdapterBatch, BatchedLinear, BatchSizes
from adapters.batch.cuda.available import has_kernels
from adapters.batch.experts import attach_experts, find_experts
from adapters.batch.linear import LinearMap, make_linear
from adapters.batch.native.batch import NativeBatch
from adapters.batch.native.gemm import library
from adapters.batch.overrides import Overrides
from adapters.batch.placed import Groups
from adapters.batch.plain import PlainBatch
from adapters.batch.positions import PositionLinear, PositionOwners
from adapters.batch.sites import Site, find_sites, watch
from adapters.quantized import QuantizedLinear, full_shape, quantization_of

PROBE_TOKENS = 23  # a number that no other dimension of a tensor is likely to have
PROBE_TARGET = 10  # tokens of the decoder's side, where there are two sides

MakeBatch = Callable[
    [Groups, Mapping[str, LinearSpec], torch.dtype, torch.device, BatchSizes], AdapterBatch[Any, Any]
]
"""What makes a batch for groups of linear layers, told their shapes and the type that is computed in."""


@dataclass(frozen=True, slots=True)
class SeenLinear:
    """One call of a linear layer in the probe run.

    Attributes:
        rows: how many it was called with.
        source: the identity of the tensor that it was called with.
        on_positions: these were rows of the model's table of relative positions (`positions.py`).
    """

    name: str
    module: nn.Module
    rows: int
    source: int
    on_positions: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        if isinstance(self.module, QuantizedLinear):
            return self.module.linear.shape
        outputs, inputs = self.weight.shape
        return outputs, inputs

    @property
    def weight(self) -> Tensor:
        """`(out_features, in_features)`, whichever way round the module stores it."""
        if isinstance(self.module, QuantizedLinear):
            return self.module.linear.weight()
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.detach().t() if isinstance(self.module, Conv1D) else weight.detach()

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    def frozen(self) -> LinearMap:
        """The fastest form of it; the codes themselves if it is quantised."""
        if isinstance(self.module, QuantizedLinear):
            return self.module.linear
        return make_linear(self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Survey:
    """What the probe run showed.

    Attributes:
        logits: `(vocabulary,)`, the stock model's answer after `probe`; of an encoder, what its head gives
            for the last token.
        sites: where adapters may act beside the linear maps, by name of the module.
        owners: what the `PositionLinear`s of the model share, if it has any.
    """

    probe: Tensor
    logits: Tensor
    seen: tuple[SeenLinear, ...]
    sites: Mapping[str, Site]
    kind: BaseKind = "decoder"
    owners: PositionOwners = field(default_factory=PositionOwners)

    def describe(self, model: PreTrainedModel, *, name: str, digest: str, source: str = "") -> BaseSpec:
        """What adapters of this base are checked against. See `BaseSpec` for the arguments."""
        linears = self._linears()
        others = frozenset(path for path, _ in model.named_modules() if path and path not in linears)
        head, table = model.get_output_embeddings(), model.get_input_embeddings()
        # The config does not tell: T5's says that they are tied where the checkpoint has two matrices.
        tied = head is not None and head.weight is table.weight
        parameters = {
            path: full_shape(model, path) for path, _ in model.named_parameters(remove_duplicate=False)
        }
        return BaseSpec(
            name,
            digest,
            linears,
            others,
            parameters,
            self._embeddings(),
            find_experts(model),
            replaceable=frozenset(self.sites),
            kind=self.kind,
            source=source,
            tied_head=tied,
            quantization=quantization_of(model),
        )

    def _embeddings(self) -> dict[str, tuple[int, int]]:
        tables = (site for site in self.sites.values() if site.embed_scale is not None)
        return {site.name: (site.shapes["weight"][0], site.shapes["weight"][1]) for site in tables}

    def _linears(self) -> dict[str, LinearSpec]:
        return {
            linear.name: LinearSpec(linear.name, linear.shape[1], linear.shape[0]) for linear in self.seen
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
        batch.overrides = Overrides(model, self.sites)
        attach_experts(model, batch)
        head = model.get_output_embeddings()
        layers: dict[str, BatchedLinear] = {}
        for index, group in enumerate(members.values()):
            for member, linear in enumerate(group):
                tokens = layers.get(linear.name)
                frozen = linear.frozen() if tokens is None else tokens.linear
                on_logits = linear.module is head or linear.on_positions
                layer = BatchedLinear(linear.name, frozen, linear.bias, batch, index, member, on_logits)
                placed = PositionLinear(layer, tokens, self.owners) if linear.on_positions else layer
                model.set_submodule(linear.name, placed)
                layers.setdefault(linear.name, layer)
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
        from adapters.batch.cuda.batch import CudaBatch

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
        rows = args[0].numel() // args[0].shape[-1]
        # An encoder's layers see all tokens or none: what else they see are positions.
        on_positions = kind == "encoder" and rows != PROBE_TOKENS and args[0].dim() == 3
        seen.append(SeenLinear(name, module, rows, id(args[0]), on_positions))

    tables: set[str] = set()
    inputs, row_counts, head_rows = _probe_run(kind, probe)

    def note_table(name: str, args: tuple[Tensor, ...]) -> None:
        if args and any(torch.equal(args[0], ids) for ids in inputs.values() if torch.is_tensor(ids)):
            tables.add(name)

    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: note(name, m, args))
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D, QuantizedLinear)
    ]
    hooks += [
        module.register_forward_pre_hook(lambda m, args, name=name: note_table(name, args))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        with watch(model) as watched, torch.inference_mode():
            logits = model(**inputs).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
    head = model.get_output_embeddings()
    calls: dict[str, list[SeenLinear]] = {}
    for linear in seen:
        calls.setdefault(linear.name, []).append(linear)

    def fits(linear: SeenLinear) -> bool:
        """Called once; or twice, on tokens and then on positions."""
        known = linear.on_positions or linear.rows in ({head_rows} if linear.module is head else row_counts)
        return known and [call.on_positions for call in calls[linear.name]] in (
            [False],
            [True],
            [False, True],
        )

    fit = [linear for linear in seen if all(map(fits, calls[linear.name]))]
    on_tokens = {linear.name for linear in fit} - {linear.name for linear in fit if linear.on_positions}
    sites = find_sites(
        model,
        watched,
        linears=on_tokens,
        tables=tables,
        row_counts=row_counts,
        head_rows=head_rows,
        padded=kind == "encoder",
    )
    return Survey(probe, logits, tuple(fit), sites, kind)


def _probe_run(kind: BaseKind, probe: Tensor) -> tuple[dict[str, Any], set[int], int]:
    """What the stock model is called with; the rows of a layer that runs on every token; the head's rows."""
    if kind == "encoder-decoder":
        target = probe[None, :PROBE_TARGET]
        inputs = {"input_ids": probe[None], "decoder_input_ids": target, "use_cache": False}
        return inputs, {PROBE_TOKENS, PROBE_TARGET}, PROBE_TARGET
    if kind == "encoder":
        return {"input_ids": probe[None]}, {PROBE_TOKENS}, 0
    return {"input_ids": probe[None], "use_cache": False, "logits_to_keep": 1}, {PROBE_TOKENS}, 1
