"""Chooses the implementation of attention, once at start."""

from __future__ import annotations

import torch

from server.engine.attention import AttentionPlan
from server.engine.gathered import GatheredPlan
from server.engine.native import paged


def plan_type(device: torch.device, dtype: torch.dtype) -> type[AttentionPlan]:
    """The fastest that works here: native code for float32 and bfloat16 on the CPU, else plain torch."""
    return paged.NativePlan if paged.available(device, dtype) else GatheredPlan
