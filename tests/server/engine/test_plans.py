"""The implementation of attention that a device, a dtype and a compiler allow."""

from __future__ import annotations

import pytest
import torch

from server.engine.gathered import GatheredPlan
from server.engine.native import paged
from server.engine.plans import plan_type
from tests.attend import CPU, Batch, Shape


@pytest.mark.skipif(not paged.available(CPU, torch.float32), reason="no compiler")
def test_native_code_serves_what_it_can() -> None:
    assert plan_type(CPU, torch.float32) is paged.NativePlan
    assert plan_type(CPU, torch.bfloat16) is paged.NativePlan
    assert plan_type(CPU, torch.float16) is GatheredPlan


def test_without_a_compiler_plain_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "_kernel", lambda: None)
    assert plan_type(CPU, torch.float32) is GatheredPlan
    batch = Batch(Shape(), [(3, 3)])
    with pytest.raises(RuntimeError, match="not available"):
        paged.NativePlan(batch.cache, batch.layout())
