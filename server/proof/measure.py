"""The numbers of the proof, and what of a difference counts as rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Largest difference as a part of the largest logit: as in the proof of the base (`engine/base.py`). One
adapter on the shipped base was off by 1e-6 in float32 and by 9e-3 in bfloat16."""
_ROUNDING = 0.2  # the part of the tolerance that is always allowed, however little an adapter does
_BASE = 3.0  # ... or so often what the base itself is off by
_LOST = 0.5  # a part of the adapter that is lost shows as about that part of its whole effect


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the served logits of an adapter are from PEFT's, over all probe positions and the vocabulary.

    Attributes:
        difference: the largest absolute one. `typical`: the largest of a position, the median of these.
        base_difference: the same of the base itself, by which rounding shows.
        scale: PEFT's largest absolute logit.
        effect: the largest absolute change that the adapter makes to a logit, by PEFT.
        kl: of the adapter's distribution from the base's, as served, mean over positions, in nats; None of
            hidden states, which are no distribution.
    """

    difference: float
    typical: float
    base_difference: float
    scale: float
    effect: float
    kl: float | None

    def limit(self, dtype: torch.dtype) -> float:
        """The largest difference that passes.

        It is a part of the logits' scale. An adapter that changes them by less than that must also not be off
        by more than half of what it changes, beyond rounding: one that is ignored would be off by all of it.
        """
        most = TOLERANCE[dtype] * self.scale
        rounding = max(_ROUNDING * most, _BASE * self.base_difference)
        return min(most, rounding + _LOST * self.effect)


def compare(
    base: Sequence[Tensor],
    adapter: Sequence[Tensor],
    peft_base: Sequence[Tensor],
    peft_adapter: Sequence[Tensor],
    *,
    distributes: bool = True,
) -> Parity:
    """Each argument has of each prompt float32 logits, `(positions, vocabulary)`, or such rows of hidden
    states, which are no distribution.

    Raises:
        ValueError: they are not of the same shape.
    """
    ours, ours_base = torch.cat([*adapter]), torch.cat([*base])
    theirs, theirs_base = torch.cat([*peft_adapter]), torch.cat([*peft_base])
    if not ours.shape == theirs.shape == ours_base.shape == theirs_base.shape:
        raise ValueError(f"rows of {tuple(ours.shape)} here, of {tuple(theirs.shape)} in PEFT")
    off = (ours - theirs).abs().amax(-1)
    return Parity(
        difference=float(off.max()),
        typical=float(off.median()),
        base_difference=float((ours_base - theirs_base).abs().max()),
        scale=float(theirs.abs().max()),
        effect=float((theirs - theirs_base).abs().max()),
        kl=float(_kl(ours, ours_base).mean()) if distributes else None,
    )


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Of each row, `sum P log(P / Q)` over the vocabulary; never below 0 by rounding."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    # What is impossible in P (a masked logit) adds nothing.
    terms = torch.where(log_p.isneginf(), torch.zeros_like(log_p), log_p.exp() * (log_p - log_q))
    return terms.sum(-1).clamp(min=0.0)
