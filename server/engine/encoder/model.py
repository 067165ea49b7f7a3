"""The frozen encoder in serving form: linear layers batched, heads beside it, proved on the spot.

After the stock model ran a probe, the served form runs it padded, beside a longer sequence, and must give the
same hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapters.batch.batched import BatchSizes
from adapters.batch.heads import check_head
from adapters.batch.placed import Placed
from adapters.batch.segment import Segment
from adapters.batch.survey import PROBE_TOKENS, MakeBatch, choose_batch, survey
from server.engine.checksum import weights_checksum
from server.engine.encoder.disentangled import position_rows, use_own_positions
from server.engine.encoder.heads import Head, task_heads
from server.engine.encoder.loading import Encoder
from server.engine.loading import UnsupportedModel

_BESIDE = 5  # tokens by which the other sequence of the proof is longer
# Largest allowed ||ours - stock|| / ||stock|| of the probe's last hidden state, as in `base.py`.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True, slots=True)
class Padded:
    """Sequences of a pass, padded behind to the longest.

    Attributes:
        ids: `(sequences, tokens)` int64. `mask`: of the same shape, 1 where there is a token.
        adapters: each sequence's own, None for the base.
    """

    ids: Tensor
    mask: Tensor
    adapters: tuple[Placed | None, ...]


class EncoderModel:
    """A base that encodes, ready for passes. Its weights are never written to.

    Attributes:
        spec, batch, linears, vocab_size: as in `ServedModel`.
        heads: by PEFT's name of the task.
    """

    def __init__(
        self,
        encoder: Encoder,
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
        model = encoder.model
        self.model = model
        self.config: Any = model.config
        self.device, self.dtype = model.device, model.dtype
        self.vocab_size = int(self.config.vocab_size)
        self._pad_token = int(self.config.pad_token_id or 0)
        try:
            seen = survey(model, "encoder")
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UnsupportedModel(f"{self.config.model_type} can't run in {self.dtype}: {reason}") from error
        self.heads = task_heads(self.config, encoder.head)
        self.spec = replace(
            seen.describe(model, name=name, digest=digest, source=source),
            task=encoder.task,
            labels=encoder.labels,
            heads={task: head.spec for task, head in self.heads.items()},
        )
        self.batch, self.linears = seen.attach(model, make_batch, sizes or BatchSizes())
        self._owners = seen.owners
        use_own_positions(model)
        self._prove(seen.probe, seen.logits)

    def checksum(self) -> str:
        """Of every weight as it is used now: equal before and after, whatever was served."""
        return weights_checksum(self.model, self.linears)

    def check_head(self, task: str, head: Head) -> None:
        """Raise `InvalidAdapter` unless an adapter's `head` is a whole one for `task`, a key of `heads`."""
        check_head(self.spec, task, {name: tuple(tensor.shape) for name, tensor in head.items()})

    def pad(self, prompts: Sequence[Sequence[int]], adapters: Sequence[Placed | None]) -> Padded:
        """The sequences of one pass."""
        longest = max(map(len, prompts))
        rows = [[*prompt, *[self._pad_token] * (longest - len(prompt))] for prompt in prompts]
        masks = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
        ids, mask = (torch.tensor(table, device=self.device) for table in (rows, masks))
        return Padded(ids, mask, tuple(adapters))

    @torch.inference_mode()
    def encode(self, padded: Padded) -> Tensor:
        """`(sequences, tokens, hidden_size)` last hidden states; those of padding mean nothing."""
        tokens = padded.ids.shape[1]
        owners = list(dict.fromkeys(padded.adapters))
        self._owners.adapters = len(owners)
        self._owners.of_sequence = torch.tensor(list(map(owners.index, padded.adapters)), device=self.device)
        positions = _segments(owners, position_rows(self.config, tokens))
        self.batch.begin(_segments(padded.adapters, tokens), positions)
        try:
            hidden: Tensor = self.model(input_ids=padded.ids, attention_mask=padded.mask).logits
        finally:
            self.batch.end()
        return hidden

    @torch.inference_mode()
    def classify(self, task: str, head: Head, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits as `TaskHead.logits` has them."""
        return self.heads[task].logits(head, hidden, mask)

    def _prove(self, probe: Tensor, stock: Tensor) -> None:
        """The probe in the middle of a batch, padded."""
        ids = probe.tolist()
        longer = [*ids[:_BESIDE], *ids]
        kind = self.config.model_type
        try:
            hidden = self.encode(self.pad([longer, ids, ids[:_BESIDE]], [None] * 3))[1, PROBE_TOKENS - 1]
        except RuntimeError as error:
            raise UnsupportedModel(f"{kind} can't run here: {str(error).splitlines()[0]}") from error
        off = float((hidden.float() - stock.float()).norm() / stock.float().norm())
        if not off <= _TOLERANCE[self.dtype]:
            raise UnsupportedModel(
                f"{kind} answers differently here than in transformers (relative error {off:.2g} on a "
                "probe prompt); it would answer wrongly"
            )


def _segments(adapters: Sequence[Placed | None], rows: int) -> list[Segment[Placed]]:
    """`rows` of each adapter, one after another; none if there are no rows."""
    if not rows:
        return []
    return [Segment(place * rows, (place + 1) * rows, adapter) for place, adapter in enumerate(adapters)]
