"""The frozen base in serving form: attention paged, linear layers batched, proved on the spot.

At load the stock model runs a probe prompt once. That run shows which linear layers see one row for each
token, and which of them share an input. Then the paged form runs the same prompt in two chunks beside a
second sequence and must give the same logits; a model that bypasses the attention interface is found here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters.base import BaseSpec, LinearSpec
from adapters.batched import AdapterBatch, BatchedLinear
from server.engine import attention
from server.engine.attention import AttentionPlan, KVCache, Span, attention_plan
from server.engine.loading import UnsupportedModel, refuse_unsupported

_PROBE = 24  # tokens of the probe prompt
_CHUNK = 15  # of which so many in the first chunk
# Largest allowed ||paged - stock|| / ||stock|| of the probe's last logits. A lost key or mask is off by more
# than 0.1 on random and on trained weights alike.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the probe run showed of one linear layer."""

    name: str
    module: nn.Module
    rows: int
    source: int


class ServedModel:
    """A base model ready for steps. The wrapped model's weights are never written to.

    Attributes:
        spec: what adapters are checked against.
        batch: the adapters of the step in flight.
        linears: the batched linear layers by module name.
        kv_bytes: bytes that the KV of one token takes.
    """

    def __init__(self, model: PreTrainedModel, *, name: str, digest: str, source: str = "") -> None:
        """Takes the model over: its linear layers are replaced.

        Raises:
            UnsupportedModel: it would answer wrongly.
        """
        refuse_unsupported(model.config)
        self.model = model
        self.device = model.device
        self.dtype = model.dtype
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        probe = _probe_tokens(self.vocab_size).to(self.device)
        stock, seen = _observe(model, probe)
        if stock.shape[-1] != self.vocab_size:
            self.vocab_size = stock.shape[-1]
        self.spec = _describe(model, seen, name, digest, source)
        self.batch, self.linears = _replace(model, seen)
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self.kv_bytes = self._prove(probe, stock)

    def forward(self, tokens: Tensor, positions: Tensor, plan: AttentionPlan, logits_of: Tensor) -> Tensor:
        """One pass over a flat row.

        Args:
            tokens, positions: `(tokens,)` int64.
            logits_of: `(rows,)` int64, whose logits to compute.

        Returns:
            `(rows, vocabulary)` logits.
        """
        with torch.inference_mode(), attention_plan(plan):
            output = self.model(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=logits_of,
            )
        logits: Tensor = output.logits[0]
        return logits

    def checksum(self) -> str:
        """Hex SHA-256 over every weight as it is used now: equal before and after, whatever was served."""
        hasher = hashlib.sha256()
        for name, tensor in sorted(
            {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}.items()
        ):
            hasher.update(name.encode() + _bytes(tensor))
        for name, module in sorted(self.linears.items()):
            hasher.update(name.encode() + _bytes(module.weight))
            if module.bias is not None:
                hasher.update(_bytes(module.bias))
        return hasher.hexdigest()

    def _prove(self, probe: Tensor, stock: Tensor) -> int:
        """Run the probe through the paged path; returns the KV bytes of one token."""
        kind = self.model.config.model_type
        cache = KVCache(4 * _PROBE, self.dtype, self.device)
        paged = self._probe_in_chunks(cache, probe)
        calls = self._last_calls
        layers = int(self.model.config.get_text_config().num_hidden_layers)
        if sorted(layer for layer, _ in calls) != list(range(layers)):
            raise UnsupportedModel(
                f"{kind} bypasses transformers' attention interface: {len(calls)} attention calls for "
                f"{layers} layers; it would answer wrongly here"
            )
        types = getattr(self.model.config.get_text_config(), "layer_types", None) or []
        windows = dict(calls)
        if any(kind_ == "sliding_attention" and windows[i] is None for i, kind_ in enumerate(types)):
            raise UnsupportedModel(
                f"{kind} has sliding layers but does not pass its window to the attention interface"
            )
        error = float((paged.float() - stock.float()).norm() / stock.float().norm())
        if not error <= _TOLERANCE[self.dtype]:
            raise UnsupportedModel(
                f"{kind} answers differently through paged attention (relative error {error:.2g} on a probe "
                "prompt); it would answer wrongly here"
            )
        return cache.slot_bytes

    def _probe_in_chunks(self, cache: KVCache, probe: Tensor) -> Tensor:
        """The probe's last logits, computed as two chunks, the second beside a shorter sequence."""
        slots = torch.arange(cache.slots, device=self.device).flip(0)
        mine, others = slots[:_PROBE], slots[_PROBE : _PROBE + 4]
        arange = torch.arange(_PROBE, device=self.device)
        first = AttentionPlan(cache, mine[:_CHUNK], [Span(0, _CHUNK, mine[:_CHUNK])])
        rest = _PROBE - _CHUNK
        second = AttentionPlan(
            cache, torch.cat([others, mine[_CHUNK:]]), [Span(0, 4, others), Span(4, 4 + rest, mine)]
        )
        last = torch.tensor([0], device=self.device)
        try:
            self.forward(probe[:_CHUNK], arange[:_CHUNK], first, last)
            logits = self.forward(
                torch.cat([probe[:4], probe[_CHUNK:]]),
                torch.cat([arange[:4], arange[_CHUNK:]]),
                second,
                last + 3 + rest,
            )
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            kind, reason = self.model.config.model_type, str(error).splitlines()[0]
            raise UnsupportedModel(f"{kind} can't run as one flat row of tokens: {reason}") from error
        self._last_calls = second.calls
        if logits.shape[0] != 1:
            raise UnsupportedModel(f"{self.model.config.model_type} ignores logits_to_keep")
        return logits[0]


def _probe_tokens(vocab_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (_PROBE,), generator=generator)


def _observe(model: PreTrainedModel, probe: Tensor) -> tuple[Tensor, list[_Seen]]:
    """Stock logits of the probe's last token, and the linear layers in the order of their calls."""
    seen: list[_Seen] = []
    alive: list[Tensor] = []  # an input that is freed could lend its identity to another

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        alive.append(args[0])
        seen.append(_Seen(name, module, args[0].numel() // args[0].shape[-1], id(args[0])))

    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: note(name, m, args))
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D)
    ]
    try:
        with torch.inference_mode():
            logits = model(input_ids=probe[None], use_cache=False, logits_to_keep=1).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
    called = [entry.name for entry in seen]
    head = model.get_output_embeddings()
    once = [s for s in seen if called.count(s.name) == 1]
    return logits, [s for s in once if s.rows == (1 if s.module is head else _PROBE)]


def _describe(model: PreTrainedModel, seen: list[_Seen], name: str, digest: str, source: str) -> BaseSpec:
    linears = {entry.name: LinearSpec(entry.name, *_features(entry.module)) for entry in seen}
    others = frozenset(path for path, _ in model.named_modules() if path and path not in linears)
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    return BaseSpec(name, digest, linears, others, source, tied)


def _features(module: nn.Module) -> tuple[int, int]:
    """`(in_features, out_features)`."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def _replace(model: PreTrainedModel, seen: list[_Seen]) -> tuple[AdapterBatch, dict[str, BatchedLinear]]:
    """Put batched layers where the linear ones were; neighbours with the same input form a group."""
    members: dict[int, list[_Seen]] = {}
    for entry in seen:
        members.setdefault(entry.source, []).append(entry)
    groups = [tuple(entry.name for entry in group) for group in members.values()]
    widths = [sum(_features(group[0].module)) for group in members.values()]
    batch = AdapterBatch(groups, widths, model.dtype)
    head = model.get_output_embeddings()
    linears: dict[str, BatchedLinear] = {}
    for index, group in enumerate(members.values()):
        for member, entry in enumerate(group):
            weight, bias = entry.module.weight, getattr(entry.module, "bias", None)
            assert isinstance(weight, Tensor)
            plain = weight.detach().t() if isinstance(entry.module, Conv1D) else weight.detach()
            layer = BatchedLinear(
                entry.name,
                plain,
                None if bias is None else bias.detach(),
                batch,
                index,
                member,
                entry.module is head,
            )
            model.set_submodule(entry.name, layer)
            linears[entry.name] = layer
    return batch, linears


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
