"""The engine with an encoder: own answers, fair turns, leases given back, failures that spread to nobody."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter
from adapters.residency import Residency
from server.engine.core import EngineConfig
from server.engine.encoder.core import EncoderCore
from server.engine.encoder.model import EncoderModel
from server.engine.engine import Engine
from server.engine.request import (
    EngineError,
    GenerationRequest,
    PoolingTask,
    QueueFull,
    SamplingParams,
)
from tests.server.engine.encoder.stand import Trained, ask, prompts, save_base, serve

AMPLE = 1 << 30


class World:
    """A RoBERTa with a head of its own, and three adapters."""

    def __init__(self, folder: Path) -> None:
        self.base = save_base("roberta", "SEQ_CLS", folder / "base", labels=3)
        self.model = serve(self.base)
        attention = ["query", "value"]
        self.adapters = {
            name: Trained(self.base, folder / name, task, labels, labels, target_modules=attention)
            for name, task, labels in (("a", "SEQ_CLS", 2), ("b", "SEQ_CLS", 4), ("c", "TOKEN_CLS", 5))
        }

    def load(self, digest: str) -> AdapterWeights:
        if digest not in self.adapters:
            raise InvalidAdapter(f"{digest} is broken")
        return self.adapters[digest].weights(self.model)

    def core(self, *, budget: int = AMPLE, load: Any = None, **sizes: Any) -> EncoderCore:
        residency = Residency(load or self.load, self.model.batch.place, torch.device("cpu"), budget, budget)
        config = EngineConfig(**{"max_model_len": 38, "kv_blocks": 0, **sizes})
        return EncoderCore(self.model, residency, config)

    def request(self, request_id: str, prompt: list[int], name: str) -> Any:
        task: PoolingTask = "token_classify" if name == "c" else "classify"
        return ask(request_id, prompt, task, name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@asynccontextmanager
async def _engine(core: EncoderCore) -> AsyncIterator[Engine[EncoderCore]]:
    engine = Engine(core)
    engine.start()
    try:
        yield engine
        await engine.call(lambda core: core.check())
    finally:
        await engine.drain(0)


def _run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


async def _until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.002)


def _preload(core: EncoderCore, *digests: str) -> None:
    deadline = time.monotonic() + 20
    while any(core.residency.state(digest) == "disk" for digest in digests):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_everyone_gets_their_own_answer(world: World) -> None:
    async def test() -> None:
        async with _engine(world.core(max_batch_tokens=64, max_running=8)) as engine:
            asked = [("abc"[i % 3], prompt) for i, prompt in enumerate(prompts(*range(1, 37), seed=3))]
            outputs = await asyncio.gather(
                *(engine.pool(world.request(str(i), prompt, name)) for i, (name, prompt) in enumerate(asked))
            )
            for (name, prompt), output in zip(asked, outputs, strict=True):
                expected = world.adapters[name].expected(prompt)
                torch.testing.assert_close(
                    torch.tensor(output.vectors).view(expected.shape), expected, rtol=1e-5, atol=1e-5
                )
            stats = await engine.call(lambda core: core.stats())
            assert (stats.running, stats.waiting, stats.prompt_tokens) == (0, 0, sum(range(1, 37)))
            assert stats.steps > 6
            assert await engine.call(lambda core: core.residency.device.leases) == {}

    _run(test)


def test_the_base_classifies_by_its_own_head(world: World) -> None:
    async def test() -> None:
        async with _engine(world.core()) as engine:
            prompt = prompts(9)[0]
            output = await engine.pool(ask("x", prompt, "classify"))
            stock = Trained(world.base, world.base.parent / "none", "SEQ_CLS", 3, 0, target_modules=["query"])
            with stock.oracle.disable_adapter():
                expected = stock.expected(prompt)
            torch.testing.assert_close(torch.tensor(output.vectors[0]), expected, rtol=1e-5, atol=1e-5)
            with pytest.raises(EngineError, match="the base by itself has no head for TOKEN_CLS"):
                await engine.pool(ask("y", prompt, "token_classify"))

    _run(test)


def test_cancelled_requests_leave_nothing_behind(world: World) -> None:
    async def test() -> None:
        held = threading.Event()

        def load(digest: str) -> AdapterWeights:
            assert held.wait(20)
            return world.load(digest)

        async with _engine(world.core(load=load)) as engine:
            tasks = [
                asyncio.create_task(engine.pool(world.request(str(i), prompt, "abc"[i % 3])))
                for i, prompt in enumerate(prompts(*[7] * 9))
            ]
            await _until(lambda: engine.stats().waiting == 9)
            for task in tasks[:8]:
                task.cancel()
            await asyncio.gather(*tasks[:8], return_exceptions=True)
            await _until(lambda: engine.stats().waiting == 1)
            held.set()
            expected = world.adapters["c"].expected(prompts(*[7] * 9)[8])
            torch.testing.assert_close(torch.tensor((await tasks[8]).vectors), expected, rtol=1e-5, atol=1e-5)
            assert await engine.call(lambda core: (core.busy, core.residency.device.leases)) == (False, {})

    _run(test)


def test_a_sequence_that_is_aborted_in_a_round_gives_its_lease_back(world: World) -> None:
    core = world.core()
    for number, prompt in enumerate(prompts(38, 1, 1, 1)):
        core.submit(world.request(str(number), prompt, "a"))
    _preload(core, "a")
    first = [request_id for request_id, _ in core.step()]
    assert core.residency.device.leases == {"a": 2}
    core.abort("2")
    core.check()
    assert core.residency.device.leases == {"a": 1}
    rest = [request_id for request_id, _ in core.step()]
    assert (first, rest) == (["0", "1"], ["3"])
    assert (core.busy, core.residency.device.leases) == (False, {})
    core.close()


def test_adapters_share_too_little_memory_in_turns(world: World) -> None:
    largest = max(world.model.batch.place(world.load(name)).nbytes for name in "abc")

    async def test() -> None:
        async with _engine(world.core(budget=largest)) as engine:
            asked = [("abc"[i % 3], prompt) for i, prompt in enumerate(prompts(*[5] * 12))]
            outputs = await asyncio.gather(
                *(engine.pool(world.request(str(i), prompt, name)) for i, (name, prompt) in enumerate(asked))
            )
            for (name, prompt), output in zip(asked, outputs, strict=True):
                expected = world.adapters[name].expected(prompt)
                actual = torch.tensor(output.vectors).view(expected.shape)
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

    _run(test)


def test_refusals_name_their_reason(world: World) -> None:
    async def test() -> None:
        async with _engine(world.core(max_waiting=0)) as engine:
            with pytest.raises(QueueFull, match="0 requests wait already"):
                await engine.pool(world.request("x", [5, 6], "a"))
        async with _engine(world.core()) as engine:
            with pytest.raises(InvalidAdapter, match="gone is broken"):
                await engine.pool(world.request("x", [5, 6], "gone"))
            with pytest.raises(EngineError, match="39 tokens do not fit into 38"):
                await engine.pool(world.request("x", [5] * 39, "a"))
            with pytest.raises(InvalidAdapter, match=r"'classifier.bias': a SEQ_CLS head of base has only"):
                await engine.pool(ask("x", [5, 6], "classify", "c"))
            with pytest.raises(EngineError, match="an encoder generates nothing"):
                await anext(engine.generate(GenerationRequest("x", (5,), SamplingParams())))
            with pytest.raises(EngineError, match="invoked by tokens"):
                await engine.pool(ask("x", [5, 6], "embed", "a", invocation=(7,)))

    _run(test)


def test_a_pass_that_fails_takes_nobody_else_along(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    core = world.core(max_batch_tokens=16)
    encode = EncoderModel.encode

    def breaks(model: EncoderModel, padded: Any) -> torch.Tensor:
        if padded.ids.shape[1] == 30:
            raise RuntimeError("out of memory")
        return encode(model, padded)

    monkeypatch.setattr(EncoderModel, "encode", breaks)

    async def test() -> None:
        async with _engine(core) as engine:
            for turn in range(3):
                assert engine.stats().healthy
                asked = [engine.pool(ask(f"{turn} {i}", p, "embed")) for i, p in enumerate(prompts(30, 3))]
                broken, fine = await asyncio.gather(*asked, return_exceptions=True)
                assert isinstance(broken, EngineError)
                assert not isinstance(fine, BaseException)
            for turn in range(3):
                assert engine.stats().healthy
                with pytest.raises(EngineError, match="the engine failed while this request ran"):
                    await engine.pool(ask(f"alone {turn}", prompts(30)[0], "embed"))
                await _until(lambda: not engine.stats().running + engine.stats().waiting)
            await _until(lambda: not engine.stats().healthy)

    _run(test)


def test_turns_are_fair(world: World) -> None:
    core = world.core(max_batch_tokens=20)
    for number, prompt in enumerate(prompts(*[10] * 6)):
        core.submit(world.request(f"a{number}", prompt, "a"))
    core.submit(world.request("b", prompts(10)[0], "b"))
    _preload(core, "a", "b")
    answered = [request_id for request_id, _ in core.step()]
    assert answered == ["a0", "b"]
    core.abort_all()
    core.close()


def test_the_base_is_the_same_afterwards(world: World) -> None:
    before = world.model.checksum()
    core = world.core()
    for number, prompt in enumerate(prompts(*[6] * 6)):
        core.submit(world.request(str(number), prompt, "abc"[number % 3]))
    while core.busy:
        core.step()
    core.close()
    assert world.model.checksum() == before
