"""The implementations that a device, a dtype and a compiler allow."""

from __future__ import annotations

import pytest
import torch

from adapters.batch.cuda import available
from server.engine import sampler
from server.engine.cuda import sampling
from server.engine.cuda.plan import PagedPlan
from server.engine.gathered import GatheredPlan
from server.engine.native import paged
from server.engine.plans import choose_sampler, plan_type
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


def test_kernels_serve_a_gpu_where_triton_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert plan_type(cuda, dtype) is PagedPlan
    monkeypatch.setattr(available, "_has_triton", lambda: False)
    assert plan_type(cuda, torch.bfloat16) is GatheredPlan


def test_sampling_stays_where_the_logits_are() -> None:
    assert choose_sampler(CPU) is sampler
    assert choose_sampler(torch.device("cuda")) is sampling
