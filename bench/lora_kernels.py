"""The GPU's LoRA kernels against `torch.bmm` over gathered weights, and against the bytes they must read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.load import median
from bench.lora_forms import Group, groups_of, random_adapter
from bench.rounds import Case, Figures

CASES = ((1, 1), (8, 8), (32, 8), (32, 32), (128, 32))
"""Decode rows, and the adapters that share them."""
_TRIES = 20


class KernelStand:
    """Adapters of one rank in the slots of a table, with inputs for rows that use them in turn.

    Both methods return each group's `(rows, outputs side by side)` deltas, without the base's product.
    """

    def __init__(
        self,
        groups: list[Group],
        rank: int,
        rows: int,
        adapters: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        from adapters.batch.cuda.table import AdapterTable, GroupShape
        from adapters.batch.placed import place

        names = [tuple(name for name, _, _ in group) for group in groups]
        shapes = [GroupShape(group[0][1], tuple(out for _, _, out in group)) for group in groups]
        self.table = AdapterTable(shapes, adapters, rank, dtype, device)
        placed = [
            place(random_adapter(groups, rank, number), names, dtype).to(device) for number in range(adapters)
        ]
        assigned = [self.table.assign(adapter) for adapter in placed]
        self.adapters = placed  # a slot does not keep its adapter alive
        order = [row * adapters // rows for row in range(rows)]
        self.slots = torch.tensor([assigned[adapter] for adapter in order], dtype=torch.int32, device=device)
        self.order = torch.tensor(order, device=device)
        self.inputs = [torch.randn(rows, group[0][1], device=device).to(dtype) for group in groups]
        self.nbytes = sum(adapter.nbytes for adapter in placed)
        # `(adapters, in, ranks)` of each group, and `(adapters, rank, out)` of each of its modules.
        self._a = [torch.stack([adapter.groups[i].at for adapter in placed]) for i in range(len(groups))]
        self._b = [
            [torch.stack([_bt(adapter, i, member) for adapter in placed]) for member in range(len(group))]
            for i, group in enumerate(groups)
        ]
        self._rank = rank

    def kernels(self) -> list[Tensor]:
        from adapters.batch.cuda.lora import expand, shrink

        deltas = []
        for x, group in zip(self.inputs, self.table.groups, strict=True):
            y = torch.zeros(x.shape[0], group.offsets[-1], dtype=x.dtype, device=x.device)
            expand(y, shrink(x, group, self.slots), group, self.slots)
            deltas.append(y)
        return deltas

    def bmm(self) -> list[Tensor]:
        deltas = []
        for x, a, bs in zip(self.inputs, self._a, self._b, strict=True):
            shrunk = torch.bmm(x[:, None], a[self.order])
            ranks = torch.split(shrunk, self._rank, dim=-1)
            parts = [torch.bmm(own, b[self.order])[:, 0] for own, b in zip(ranks, bs, strict=True)]
            deltas.append(torch.cat(parts, dim=1))
        return deltas


def _bt(adapter: Any, group: int, member: int) -> Tensor:
    bt: Tensor = adapter.groups[group].parts[member].bt
    return bt


def kernel_cases(
    shape: str, rank: int, dtype: torch.dtype, device: torch.device, rates: Figures
) -> dict[str, Case]:
    """For each number of rows and adapters the seconds of a few layers: `kernels`, `bmm`, and their `floor`.

    `rates`: filled with `read_bandwidth`, in bytes per second, before a case runs.
    """

    def case(rows: int, adapters: int) -> Case:
        def run(number: int) -> Figures:
            stand = KernelStand(list(groups_of(shape)), rank, rows, adapters, dtype, device)
            with torch.inference_mode():
                kernels, bmm = _seconds(stand.kernels, device), _seconds(stand.bmm, device)
            floor = stand.nbytes / rates["read_bandwidth"]
            return {"kernels": kernels, "bmm": bmm, "floor": floor, "times_floor": kernels / floor}

        return run

    return {f"kernels, {rows} rows, {adapters} adapters": case(rows, adapters) for rows, adapters in CASES}


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Median seconds, launches included; on a GPU captured in a graph, as in the engine's decode steps."""
    run()
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    times = []
    for _ in range(_TRIES):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - started)
    return median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
