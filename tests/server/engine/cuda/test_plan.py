"""A step's layout, sent to the device once, gives the kernels what dense attention sees."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from server.engine.attention import StepLayout
from server.engine.cuda import plan as module
from server.engine.cuda.plan import PagedPlan, paged_step
from server.engine.transfer import to_device
from tests.attend import Batch, Shape

PARTS = [(1, 1), (13, 1), (7, 7), (23, 6), (2, 1)]


@pytest.mark.parametrize(
    "shape",
    [
        Shape(kv_heads=2),
        Shape(kv_heads=2, window=6, softcap=2.0, sinks=True, scale=0.4),
        Shape(kv_heads=1, value_dim=12),
    ],
    ids=str,
)
def test_equals_dense_attention_whatever_other_slots_hold(shape: Shape, gpu: torch.device) -> None:
    batch = Batch(shape, PARTS, device=gpu)
    batch.fill(stale=math.nan)
    batch.check(PagedPlan)


@pytest.mark.parametrize("parts", [[(3, 1), (9, 1)], [(5, 5), (6, 2)]], ids=["decode", "prefill"])
def test_steps_of_one_kind(parts: list[tuple[int, int]], gpu: torch.device) -> None:
    batch = Batch(Shape(kv_heads=2), parts, device=gpu)
    batch.fill()
    batch.check(PagedPlan)


def test_layers_share_one_copy_of_the_layout(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def send(*args: Any) -> list[torch.Tensor]:
        sent.append(1)
        return to_device(*args)

    monkeypatch.setattr(module, "to_device", send)
    batch = Batch(Shape(), [(1, 1)], device=gpu)  # no earlier token, which nobody has written
    plan = PagedPlan(batch.cache, batch.layout())
    for layer in range(3):
        q, k, v = (torch.zeros(1, 4, 1, 8, device=gpu) for _ in range(3))
        plan.attend(layer, q, k, v, scale=1.0, window=None, softcap=None, sinks=None)
    assert sent == [1]


def test_a_step_holds_the_layout_and_its_tiles(gpu: torch.device) -> None:
    layout = StepLayout.of(4, [[1], [2, 5], [3]], [3, 6, 2], [1, 5, 1])
    step = paged_step(layout, 2, gpu)
    assert step.decodes == 1
    assert step.slots.tolist() == [6, 9, 10, 11, 20, 21, 13]
    assert step.block_tables.tolist() == [[1, 0], [2, 5], [3, 0]]
    assert step.kv_lengths.tolist() == [3, 6, 2]
    assert step.query_starts.tolist() == [0, 1, 6, 7]
    assert (step.tiles.tolist(), step.tile_queries) == ([[1, 4], [1, 2], [1, 0], [2, 0]], 2)
    for tensor, dtype in ((step.slots, torch.int64), (step.tiles, torch.int32)):
        assert (tensor.dtype, tensor.device.type) == (dtype, gpu.type)
