"""The frozen encoder-decoder base in serving form: flat rows, linear layers batched, proved on the spot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapters.batch.batched import AdapterBatch, BatchSizes
from adapters.batch.placed import Placed
from adapters.batch.segment import Segment
from adapters.batch.survey import PROBE_TARGET, MakeBatch, choose_batch, survey
from server.engine.checksum import weights_checksum
from server.engine.loading import UnsupportedModel, refuse_unsupported
from server.engine.native.norms import use_native_norms
from server.engine.seq2seq.memory import Memory, MemoryShape
from server.engine.seq2seq.stack import Stack

_BESIDE = 5  # tokens of the other source of the proof
# Largest allowed ||ours - stock|| / ||stock|| of the probe's last logits, as in `base.py`.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2}
# The config's field that says whether the decoder's output is scaled before the head.
_SCALES_OUTPUT = {"t5": "scale_decoder_outputs", "umt5": "tie_word_embeddings"}


class Seq2SeqModel:
    """A base of the T5 family ready for steps. Its weights are never written to.

    Attributes:
        model, spec, batch, linears, vocab_size: as in `ServedModel`.
        start: the token id that every target begins with.
        shape: of the decoder's memory. `kv_bytes`: what a token of it takes.
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
    ) -> None:
        """Takes the model over: its linear layers are replaced. See `ServedModel` for the arguments.

        Raises:
            UnsupportedModel: it would answer wrongly.
        """
        config: Any = model.config
        refuse_unsupported(config)
        self.model = model
        self.device, self.dtype = model.device, model.dtype
        self.start = _start_token(model)
        seen = survey(model, "encoder-decoder")
        self.vocab_size = seen.logits.shape[-1]
        self.spec = seen.describe(model, name=name, digest=digest, source=source)
        self.batch, self.linears = seen.attach(model, make_batch, sizes or BatchSizes())
        use_native_norms(model)
        parts: Any = model
        self._head = parts.lm_head
        self._encoder = Stack(parts.encoder, config.num_heads)
        self._decoder = Stack(parts.decoder, config.num_heads)
        self.shape = MemoryShape(self._decoder.depth, config.num_heads, config.d_kv, self.dtype, self.device)
        self.kv_bytes = self.shape.nbytes
        scales = getattr(config, _SCALES_OUTPUT.get(config.model_type, ""), False)
        self._output_scale = config.d_model**-0.5 if scales else 1.0
        self._prove(config.model_type, seen.probe, seen.logits)

    @torch.inference_mode()
    def encode(
        self, sources: Sequence[Sequence[int]], memories: Sequence[Memory], adapters: Sequence[Placed | None]
    ) -> None:
        """Read each source into its memory, with its own adapter (or None)."""
        lengths = [len(source) for source in sources]
        tokens = torch.tensor([token for source in sources for token in source], device=self.device)
        with _adapted(self.batch, lengths, adapters):
            self._decoder.remember(self._encoder.encode(tokens, lengths), memories)

    @torch.inference_mode()
    def decode(
        self, tokens: Sequence[int], memories: Sequence[Memory], adapters: Sequence[Placed | None]
    ) -> Tensor:
        """Take one more token into each memory. Returns `(sequences, vocabulary)` logits of what is next."""
        row = torch.tensor(tokens, device=self.device)
        with _adapted(self.batch, [1] * len(tokens), adapters):
            hidden = self._decoder.decode(row, memories)
            if self._output_scale != 1:
                hidden = hidden * self._output_scale
            logits: Tensor = self._head(hidden)
        return logits[0]

    def checksum(self) -> str:
        """See `weights_checksum`."""
        return weights_checksum(self.model, self.linears)

    def _prove(self, kind: str, probe: Tensor, stock: Tensor) -> None:
        """The probe's target, token by token beside another sequence, must end with the stock logits."""
        source = probe.tolist()
        other = source[:_BESIDE]
        memories = [Memory(self.shape, len(row), PROBE_TARGET) for row in (other, source)]
        self.encode([other, source], memories, [None, None])
        for token in source[:PROBE_TARGET]:
            logits = self.decode([token, token], memories, [None, None])
        error = float((logits[1].float() - stock.float()).norm() / stock.float().norm())
        if not error <= _TOLERANCE[self.dtype]:
            raise UnsupportedModel(
                f"{kind} answers differently here than in transformers (relative error {error:.2g} on a "
                "probe prompt); it would answer wrongly"
            )


@contextmanager
def _adapted(
    batch: AdapterBatch[Any, Any], lengths: Sequence[int], adapters: Sequence[Placed | None]
) -> Iterator[None]:
    """A pass over sequences of `lengths` rows, each with its own adapter."""
    edges = [0, *accumulate(lengths)]
    segments = [Segment(*part) for part in zip(edges, edges[1:], adapters, strict=False)]
    # The head is called with the rows of the decoder's pass, all of them.
    batch.begin(segments, segments)
    try:
        yield
    finally:
        batch.end()


def _start_token(model: PreTrainedModel) -> int:
    for source in (model.generation_config, model.config):
        start = getattr(source, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise UnsupportedModel(
        f"{model.config.model_type}: its configuration has no decoder_start_token_id, with which every "
        "answer begins"
    )
