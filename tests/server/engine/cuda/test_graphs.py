"""The engine on the GPU's kernels, its decode steps padded and on fixed tensors: PEFT's tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from adapters.batch.batched import BatchSizes
from adapters.batch.cuda import batch as lora
from adapters.batch.cuda.batch import CudaBatch
from adapters.delta import AdapterWeights, ModuleDelta
from server.engine.attention import StepLayout
from server.engine.base import ServedModel
from server.engine.core import EngineCore
from server.engine.cuda import sampling
from server.engine.cuda.graphs import DecodeInputs, GraphedDecode, StaticDecode, padded
from server.engine.cuda.plan import PagedPlan
from tests.gpu import INTERPRETED
from tests.kit import Families, Family, ask, engine_core, preload, prompts, run_all
from tests.tiny import greedy

PROMPTS = prompts(4, 9, 6, 3, 5)
SIZES: dict[str, Any] = {
    "max_model_len": 40,
    "kv_blocks": 40,
    "block_size": 4,
    "max_running": 5,
    "prefill": 30,
}


@pytest.fixture(scope="module")
def llama(families: Families) -> Family:
    return families("llama")


@pytest.fixture(scope="module")
def model(llama: Family, gpu: torch.device) -> ServedModel:
    stock = copy.deepcopy(llama.stock).to(gpu)
    sizes = BatchSizes(adapters=3, rank=8)
    return ServedModel(stock, name="base", digest="d", sizes=sizes, make_batch=CudaBatch, plan=PagedPlan)


class Noted(StaticDecode):
    """Notes the size of each step and whether it had adapters."""

    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self.steps: list[tuple[int, bool]] = []

    def _forward(self, size: int, adapters: bool) -> Tensor:
        self.steps.append((size, adapters))
        return super()._forward(size, adapters)


def _use(core: EngineCore, kind: type[StaticDecode], *, max_rows: int = 5) -> StaticDecode:
    core.sampler = sampling
    path = kind(core.model, core.runner.cache, block_size=4, max_rows=max_rows, max_length=40)
    core.runner.decode = path
    return path


def _check(core: EngineCore, llama: Family, asked: Sequence[tuple[str | None, int]]) -> None:
    """Each asks for some tokens of an adapter or the base, and gets those of PEFT or transformers."""
    preload(core, *(adapter for adapter, _ in asked if adapter))
    requests = [
        ask(str(i), PROMPTS[i], adapter, max_tokens=tokens) for i, (adapter, tokens) in enumerate(asked)
    ]
    answers = run_all(core, requests)
    for i, (adapter, tokens) in enumerate(asked):
        assert answers[str(i)].tokens == llama.expected(adapter, PROMPTS[i], tokens), (i, adapter)


def test_mixed_adapters_answer_as_peft_does(llama: Family, model: ServedModel) -> None:
    with engine_core(llama, model=model, **SIZES) as core:
        path = _use(core, Noted)
        _check(core, llama, [(None, 2), ("all", 4), ("mlp", 3)])
        assert isinstance(path, Noted)
        # Three rows, then fewer as answers end; the prompts' step went the other way.
        assert path.steps == [(4, True), (2, True), (1, True)]


def test_steps_launched_one_by_one_answer_the_same(llama: Family, model: ServedModel) -> None:
    with engine_core(llama, model=model, **{**SIZES, "prefill": 8}) as core:  # rows beside chunks
        core.runner.decode = None
        _check(core, llama, [("patterns", 3), (None, 2)])


def test_steps_of_the_bare_base_launch_nothing_for_adapters(
    llama: Family, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_core(llama, model=model, **SIZES) as core:
        path = _use(core, Noted)
        for name in ("shrink", "expand"):
            monkeypatch.setattr(lora, name, None)
        _check(core, llama, [(None, 2)] * 5)
        assert isinstance(path, Noted)
        assert path.steps == [(8, False)]


def test_more_rows_than_were_foreseen_go_the_other_way(llama: Family, model: ServedModel) -> None:
    with engine_core(llama, model=model, **SIZES) as core:
        path = _use(core, Noted, max_rows=1)
        _check(core, llama, [(None, 2), (None, 3)])
        assert isinstance(path, Noted)
        assert path.steps == [(1, False)]


def test_adapters_that_scale_inputs_go_the_other_way(llama: Family, model: ServedModel) -> None:
    name = "model.layers.0.mlp.down_proj"
    shape = model.spec.linears[name]
    none = torch.empty(0, shape.in_features), torch.empty(shape.out_features, 0), 1.0
    scale = torch.linspace(-1, 3, shape.in_features)

    def load(digest: str) -> AdapterWeights:
        return AdapterWeights(digest, {name: ModuleDelta(*none, input_scale=scale)})

    requests = [ask(str(i), PROMPTS[i], adapter, max_tokens=3) for i, adapter in enumerate(("ia3", None))]
    with engine_core(llama, load=load) as core:
        expected = run_all(core, requests)
    with engine_core(llama, model=model, load=load, **SIZES) as core:
        path = _use(core, Noted)
        preload(core, "ia3")
        got = run_all(core, requests)
    assert [got[i].tokens for i in "01"] == [expected[i].tokens for i in "01"]
    assert got["0"].tokens != llama.expected(None, PROMPTS[0], 3)
    assert isinstance(path, Noted)
    assert path.steps == []


@pytest.mark.skipif(INTERPRETED, reason="graphs need a GPU")
def test_graphs_answer_as_peft_does(llama: Family, model: ServedModel) -> None:
    with engine_core(llama, model=model, **SIZES) as core:
        _use(core, GraphedDecode)
        _check(core, llama, [(None, 5), ("all", 7), ("mlp", 4)])
        _check(core, llama, [(None, 3)] * 5)
        _check(core, llama, [("patterns", 6)])


class FakeGraph:
    """Notes in which pool it was captured, and its replays."""

    made: ClassVar[list[FakeGraph]] = []

    def __init__(self) -> None:
        self.asked_pool: object = None
        self.replays = 0
        self.made.append(self)

    def pool(self) -> object:
        return self.asked_pool or self

    def replay(self) -> None:
        self.replays += 1


@contextmanager
def _fake_capture(graph: FakeGraph, pool: object) -> Iterator[None]:
    graph.asked_pool = pool
    yield


def test_each_kind_of_step_is_captured_at_start_and_then_replayed(
    llama: Family, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, bool]] = []

    def forward(self: StaticDecode, size: int, adapters: bool) -> Tensor:
        ran.append((size, adapters))
        return torch.full((size, 2), float(len(ran)))

    monkeypatch.setattr(StaticDecode, "_forward", forward)
    monkeypatch.setattr(FakeGraph, "made", [])
    for name, fake in {
        "CUDAGraph": FakeGraph,
        "graph": _fake_capture,
        "stream": nullcontext,
        "current_stream": lambda device: None,
        "synchronize": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with engine_core(llama, model=model, **SIZES) as core:
        ran.clear()  # on a GPU the engine has captured its own
        FakeGraph.made.clear()
        path = _use(core, GraphedDecode)
    # Each once to compile and once to capture.
    assert ran == [(size, adapters) for size in (8, 4, 2, 1) for adapters in (True, False) for _ in "ab"]
    first, *others = FakeGraph.made
    assert all(graph.asked_pool is first for graph in others)
    layout = StepLayout.of(4, [[1], [2], [3]], [1, 2, 3], [1, 1, 1])
    logits = path.run([5, 6, 7], layout, [None] * 3)
    assert logits is not None
    assert logits.tolist() == [[8.0, 8.0]] * 3
    assert [graph.replays for graph in FakeGraph.made] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert len(ran) == 16


def test_only_the_kernels_read_slots_when_they_run(llama: Family) -> None:
    with engine_core(llama) as core, pytest.raises(TypeError, match="slots that change"):
        _use(core, StaticDecode)


def test_sizes_are_few() -> None:
    assert [padded(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 64)] == [1, 2, 4, 4, 8, 8, 16, 16, 24, 64]


def test_inputs_are_padded_in_place(gpu: torch.device) -> None:
    inputs = DecodeInputs(8, 4, gpu)
    addresses = [t.data_ptr() for t in (inputs.longs, inputs.ints, inputs.tables)]
    full = StepLayout.of(4, [[5, 6, 7]] * 4, [9] * 4, [1] * 4)
    inputs.fill(4, [11] * 4, full, [2] * 4)
    inputs.fill(4, [12, 13, 14], StepLayout.of(4, [[1], [2, 3], [4]], [1, 6, 4], [1, 1, 1]), [0, -1, 1])
    assert [t.data_ptr() for t in (inputs.longs, inputs.ints, inputs.tables)] == addresses
    assert inputs.longs[:, :4].tolist() == [[12, 13, 14, 0], [0, 5, 3, 0], [4, 13, 19, -1]]
    assert inputs.ints[:, :4].tolist() == [[1, 6, 4, 0], [0, -1, 1, -1]]
    step = inputs.step(4)
    assert step.block_tables[:3, :2].tolist() == [[1, 0], [2, 3], [4, 0]]
    assert step.slots.tolist() == [4, 13, 19, -1]
    assert step.kv_lengths.tolist() == [1, 6, 4, 0]
    assert (step.decodes, len(step.tiles)) == (4, 0)


def test_adapters_that_change_more_than_linear_maps_go_the_other_way(
    llama: Family, model: ServedModel
) -> None:
    """Their rows are written anew by Python code, which a replay does not run."""
    norm = AdapterWeights("norm", {}, replaced={"model.norm": {"weight": torch.full((48,), 2.0)}})
    stock = copy.deepcopy(llama.stock)
    stock.model.norm.weight.data.fill_(2.0)
    with engine_core(llama, load=lambda digest: norm, model=model, **SIZES) as core:
        path = _use(core, Noted)
        preload(core, "norm")
        answers = run_all(core, [ask("own", PROMPTS[0], "norm", max_tokens=3), ask("base", PROMPTS[1])])
        assert answers["own"].tokens == greedy(stock, PROMPTS[0], 3)
        assert answers["base"].tokens == llama.expected(None, PROMPTS[1], 8)
        assert isinstance(path, Noted)
        assert path.steps == [(1, False)] * 5  # once the base was alone
