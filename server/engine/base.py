"""The frozen base in serving form: attention paged, linear layers batched, proved on the spot.

After the stock model ran a probe prompt, the paged form runs the same prompt in two chunks beside a second
sequence and must give the same logits. A model that bypasses the attention interface is found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapters.batch.batched import BatchSizes
from adapters.batch.survey import PROBE_TOKENS, MakeBatch, choose_batch, survey
from adapters.weights import base_weights
from server.engine.attention import AttentionPlan, KVCache, StepLayout, attention_plan
from server.engine.checksum import weights_checksum
from server.engine.families import use_paged_attention
from server.engine.loading import UnsupportedModel, refuse_unsupported
from server.engine.native.layer import trials
from server.engine.native.norms import use_native_norms
from server.engine.plans import plan_type

_CHUNK = 15  # probe tokens in the first chunk
_BESIDE = 4  # tokens of the other sequence
# Largest allowed ||paged - stock|| / ||stock|| of the probe's last logits. A lost key or mask is off by more
# than 0.1 on random and on trained weights alike.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


class ServedModel:
    """A base model ready for steps. The wrapped model's weights are never written to.

    Attributes:
        spec: what adapters are checked against.
        batch: the adapters of the step in flight.
        linears: the batched linear layers by module name.
        vocab_size: the width of its logits.
        plan_type: the implementation of attention, made anew with a `KVCache` and each step's `StepLayout`.
        kv_bytes: bytes that the KV of one token takes.
        pools: whether its last hidden states can be seen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        digest: str,
        source: str = "",
        sizes: BatchSizes | None = None,
        make_batch: MakeBatch = choose_batch,
        plan: type[AttentionPlan] | None = None,
    ) -> None:
        """Takes the model over: its linear layers are replaced.

        Args:
            name, digest, source: see `BaseSpec`.
            sizes: of the steps' adapters.
            make_batch, plan: how adapters are applied and what attention is computed by; by default the
                fastest that works here.

        Raises:
            UnsupportedModel: it would answer wrongly.
        """
        refuse_unsupported(model.config)
        self.model = model
        self.device = model.device
        self.dtype = model.dtype
        seen = survey(model)
        self.vocab_size = seen.logits.shape[-1]
        self.spec = seen.describe(model, name=name, digest=digest, source=source)
        self.batch, self.linears = seen.attach(model, make_batch, sizes or BatchSizes())
        use_native_norms(model)
        use_paged_attention(model)
        self.plan_type = plan or plan_type(self.device, self.dtype)
        with trials(model):
            self.kv_bytes = self._prove(seen.probe, seen.logits)
        self._prove(seen.probe, seen.logits)  # once more, as it is served

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

    @contextmanager
    def hidden_states(self) -> Iterator[list[Tensor]]:
        """The last hidden states of the forward passes inside, `(tokens, hidden_size)` each: after the final
        norm, as the output head reads them.
        """
        seen: list[Tensor] = []
        hook = self.model.get_decoder().register_forward_hook(
            lambda module, args, output: seen.append(output[0][0])
        )
        try:
            yield seen
        finally:
            hook.remove()

    def weight(self, name: str) -> Tensor:
        """A frozen parameter of the base by its name in `spec.parameters`; see `BaseWeights`."""
        return base_weights(self.model, self.linears)(name)

    def checksum(self) -> str:
        """Hex SHA-256 over every weight as it is used now: equal before and after, whatever was served."""
        return weights_checksum(self.model, self.linears)

    def _prove(self, probe: Tensor, stock: Tensor) -> int:
        """Run the probe through the paged path; returns the KV bytes of one token."""
        kind = self.model.config.model_type
        text = self.model.config.get_text_config()
        cache = KVCache(2 * PROBE_TOKENS, self.dtype, self.device)
        paged, calls = self._probe_in_chunks(cache, probe)
        if sorted(layer for layer, _ in calls) != list(range(text.num_hidden_layers)):
            raise UnsupportedModel(
                f"{kind} bypasses transformers' attention interface: {len(calls)} attention calls for "
                f"{text.num_hidden_layers} layers; it would answer wrongly here"
            )
        windows = dict(calls)
        for layer, layer_type in enumerate(getattr(text, "layer_types", None) or []):
            if layer_type == "sliding_attention" and windows[layer] is None:
                raise UnsupportedModel(f"{kind} does not tell the attention interface its sliding window")
        error = float((paged.float() - stock.float()).norm() / stock.float().norm())
        if not error <= _TOLERANCE[self.dtype]:
            raise UnsupportedModel(
                f"{kind} answers differently through paged attention (relative error {error:.2g} on a probe "
                "prompt); it would answer wrongly here"
            )
        return cache.slot_bytes

    def _probe_in_chunks(self, cache: KVCache, probe: Tensor) -> tuple[Tensor, list[tuple[int, int | None]]]:
        """The probe's last logits with its second chunk beside another sequence, and that step's calls."""
        slots = list(reversed(range(cache.slots)))
        mine, others = slots[:PROBE_TOKENS], slots[PROBE_TOKENS : PROBE_TOKENS + _BESIDE]
        positions = torch.arange(PROBE_TOKENS, device=self.device)
        rest = PROBE_TOKENS - _CHUNK
        rows = _BESIDE + rest
        first = self.plan_type(cache, StepLayout.of(1, [mine], [_CHUNK], [_CHUNK]))
        second = self.plan_type(
            cache, StepLayout.of(1, [others, mine], [_BESIDE, PROBE_TOKENS], [_BESIDE, rest])
        )
        last = torch.tensor([rows - 1], device=self.device)
        kind = self.model.config.model_type
        try:
            self.forward(probe[:_CHUNK], positions[:_CHUNK], first, torch.zeros_like(last))
            with self.hidden_states() as seen:
                logits = self.forward(
                    torch.cat([probe[:_BESIDE], probe[_CHUNK:]]),
                    torch.cat([positions[:_BESIDE], positions[_CHUNK:]]),
                    second,
                    last,
                )
            self.pools = [len(hidden) for hidden in seen] == [rows]
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise UnsupportedModel(f"{kind} can't run as one flat row of tokens: {reason}") from error
        if logits.shape[0] != 1:
            raise UnsupportedModel(f"{kind} ignores logits_to_keep")
        return logits[0], second.calls
