"""What publishing found out about an adapter by comparing the served path with PEFT's own forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapters.delta import AdapterWeights

ProofStatus = Literal["proved", "unavailable", "not_covered", "off"]


@dataclass(frozen=True, slots=True)
class Proof:
    """The comparison on a few probe prompts, or why there is none.

    Attributes:
        status: `proved`: compared, and within the tolerance. `unavailable`: it should have been compared, but
            PEFT's side failed. `not_covered`: there is no comparison for such a base or task. `off`: nobody
            asked for one.
        reason: one line, for the two that have one.
        max_logit_difference: largest absolute difference of the adapter's logits from PEFT's.
        kl_from_base: Kullback-Leibler divergence of the adapter's next-token distribution from the base's, as
            they are served, mean over the probe positions, in nats.
    """

    status: ProofStatus
    reason: str | None = None
    max_logit_difference: float | None = None
    kl_from_base: float | None = None


NO_PROOF = Proof("off")

Prove = Callable[[Path, AdapterWeights], Proof]
"""Of the folder with an adapter's two files and what was read from it. Raises `InvalidAdapter` where the two
paths differ by more than rounding explains."""


def prove_nothing(folder: Path, adapter: AdapterWeights) -> Proof:
    """A `Prove` for who does not want one."""
    return NO_PROOF
