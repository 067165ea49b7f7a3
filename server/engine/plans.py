"""Chooses the implementations of a step's parts, once at start."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

import torch
from torch import Tensor

from adapters.batch.cuda.available import has_kernels
from server.engine import sampler
from server.engine.attention import AttentionPlan
from server.engine.cuda import sampling
from server.engine.gathered import GatheredPlan
from server.engine.native import paged
from server.engine.request import TokenLogprob
from server.engine.sequence import Sequence


class Sampler(Protocol):
    """From logits to tokens and their scores, as `sampler.py` defines them."""

    def sample(self, logits: Tensor, sequences: Rows[Sequence], end_tokens: frozenset[int]) -> list[int]: ...

    def logprobs(self, logits: Tensor, chosen: Rows[int], top: int) -> list[TokenLogprob]: ...


def plan_type(device: torch.device, dtype: torch.dtype) -> type[AttentionPlan]:
    """Attention: kernels on a GPU, native code for float32 and bfloat16 on the CPU, else plain torch."""
    if has_kernels(device):
        from server.engine.cuda.plan import PagedPlan

        return PagedPlan
    return paged.NativePlan if paged.available(device, dtype) else GatheredPlan


def choose_sampler(device: torch.device) -> Sampler:
    """Sampling: row by row on the CPU, for the whole batch in place on any other device."""
    return sampler if device.type == "cpu" else sampling
