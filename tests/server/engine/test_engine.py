"""The asyncio side: streams, cancellation, errors, draining, and an engine thread that nothing kills."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import Any

import pytest

from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter
from server.engine.core import EngineCore
from server.engine.engine import Engine
from server.engine.request import EngineError, GenerationRequest, PoolingRequest, QueueFull
from tests.kit import Families, Family, ask, engine_core, letters, prompts

PROMPT = prompts(9)[0]


@pytest.fixture
def llama(families: Families) -> Family:
    return families("llama")


@asynccontextmanager
async def _engine(family: Family, **options: Any) -> AsyncIterator[tuple[Engine, EngineCore]]:
    with engine_core(family, **options) as core:
        engine = Engine(core)
        engine.start()
        try:
            yield engine, core
        finally:
            await engine.drain(0)


async def _answer(engine: Engine, request: GenerationRequest) -> tuple[str, list[int]]:
    text, tokens = "", list[int]()
    async for output in engine.generate(request):
        assert output.request_id == request.request_id
        text += output.text
        tokens += output.token_ids
    return text, tokens


async def _until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.002)


def _run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def test_streams_many_answers_at_once(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, _):
            adapters = [None, *llama.adapters] * 3
            requests = [ask(str(i), PROMPT, adapter) for i, adapter in enumerate(adapters)]
            answers = await asyncio.gather(*(_answer(engine, request) for request in requests))
            for adapter, (text, tokens) in zip(adapters, answers, strict=True):
                assert tokens == llama.expected(adapter, PROMPT, 8)
                assert text == letters(tokens)
            assert engine.stats().running == 0
            assert engine.stats().generated_tokens == 8 * len(requests)

    _run(test)


def test_outputs_come_one_by_one(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, _):
            outputs = [output async for output in engine.generate(ask("x", PROMPT, max_tokens=5))]
            assert [len(output.token_ids) for output in outputs] == [1] * 5
            assert [output.finish_reason for output in outputs] == [None] * 4 + ["length"]

    _run(test)


def test_closing_a_stream_frees_all_that_it_held(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, _):
            async with aclosing(engine.generate(ask("x", PROMPT, "all", max_tokens=100))) as stream:
                await anext(stream)
                assert engine.stats().adapters_running == ("all",)
            await _until(lambda: engine.stats().running == 0)
            await engine.call(EngineCore.check)
            assert await engine.call(lambda core: (core.pool.used, core.busy)) == (0, False)
            assert (await _answer(engine, ask("x", PROMPT)))[1] == llama.expected(None, PROMPT, 8)

    _run(test)


def test_cancelling_the_task_that_reads_aborts_its_request(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama, max_running=1) as (engine, _):
            tasks = [
                asyncio.create_task(_answer(engine, ask(str(i), PROMPT, max_tokens=110))) for i in range(3)
            ]
            await _until(lambda: engine.stats().running == 1 and engine.stats().waiting == 2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await _until(lambda: engine.stats().running + engine.stats().waiting == 0)
            await engine.call(EngineCore.check)

    _run(test)


def test_embeddings_come_beside_streams(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, _):
            requests = [PoolingRequest(name, tuple(PROMPT), "embed", adapter="all") for name in ("p0", "p1")]
            answer = asyncio.create_task(_answer(engine, ask("x", PROMPT, "all")))
            one, other = await asyncio.gather(*(engine.pool(request) for request in requests))
            _, tokens = await answer
            assert (one.request_id, other.request_id) == ("p0", "p1")
            assert one.vectors == other.vectors
            assert tokens == llama.expected("all", PROMPT, 8)

    _run(test)


def test_a_cancelled_embedding_frees_all_that_it_held(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama, max_running=1) as (engine, _):
            async with aclosing(engine.generate(ask("x", PROMPT, max_tokens=100))) as stream:
                await anext(stream)
                task = asyncio.create_task(engine.pool(PoolingRequest("p", tuple(PROMPT), "embed")))
                await _until(lambda: engine.stats().waiting == 1)
                task.cancel()
                await _until(lambda: engine.stats().waiting == 0)
            await _until(lambda: engine.stats().running == 0)
            await engine.call(EngineCore.check)
            with pytest.raises(EngineError, match="no head to classify with"):
                await engine.pool(PoolingRequest("q", tuple(PROMPT), "classify"))

    _run(test)


def test_refusals_reach_the_one_who_asked(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama, max_running=1, max_waiting=1) as (engine, _):
            with pytest.raises(EngineError, match="do not fit"):
                await _answer(engine, ask("x", PROMPT, max_tokens=1000))
            first = asyncio.create_task(_answer(engine, ask("1", PROMPT, max_tokens=100)))
            await _until(lambda: engine.stats().running == 1)
            second = asyncio.create_task(_answer(engine, ask("2", PROMPT)))
            await _until(lambda: engine.stats().waiting == 1)
            with pytest.raises(QueueFull):
                await _answer(engine, ask("3", PROMPT))
            await asyncio.gather(first, second)

    _run(test)


def test_a_failing_adapter_is_an_error_of_its_request(llama: Family) -> None:
    def load(digest: str) -> AdapterWeights:
        raise InvalidAdapter("damaged")

    async def test() -> None:
        async with _engine(llama, load=load) as (engine, _):
            beside = asyncio.create_task(_answer(engine, ask("beside", PROMPT)))
            with pytest.raises(InvalidAdapter, match="damaged"):
                await _answer(engine, ask("x", PROMPT, "broken"))
            assert (await beside)[1] == llama.expected(None, PROMPT, 8)

    _run(test)


def test_a_load_that_ends_wakes_an_idle_engine(llama: Family) -> None:
    release = threading.Event()

    def load(digest: str) -> AdapterWeights:
        assert release.wait(30)
        return llama.weights(digest)

    async def test() -> None:
        async with _engine(llama, load=load) as (engine, _):
            task = asyncio.create_task(_answer(engine, ask("x", PROMPT, "all")))
            await _until(lambda: engine.stats().waiting == 1)
            assert engine.residency("all") == "disk"
            release.set()
            assert (await task)[1] == llama.expected("all", PROMPT, 8)
            assert engine.residency("all") == "device"

    _run(test)


def test_prefetching_loads_before_anyone_asks(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, _):
            engine.prefetch("all")
            await _until(lambda: engine.residency("all") == "device")
            await engine.drain(0)
            engine.prefetch("mlp")  # a publication that ends while the server does
            assert engine.residency("mlp") == "disk"

    _run(test)


def test_a_step_that_fails_ends_its_requests_and_the_engine_goes_on(
    llama: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, core):
            with monkeypatch.context() as broken:
                broken.setattr(core.model, "forward", _raise)
                tasks = [_answer(engine, ask(str(i), PROMPT)) for i in range(2)]
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(answer) for answer in answers] == [EngineError, EngineError]
            assert "the engine failed" in str(answers[0])
            assert (await _answer(engine, ask("x", PROMPT)))[1] == llama.expected(None, PROMPT, 8)
            assert engine.stats().healthy

    _run(test)


def _raise(*_: object) -> None:
    raise RuntimeError("the device is gone")


def test_steps_that_go_on_failing_make_it_unhealthy(llama: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if each failure has its own request, with an idle moment between."""

    async def test() -> None:
        async with _engine(llama) as (engine, core):
            monkeypatch.setattr(core.model, "forward", _raise)
            for index in range(3):
                assert engine.stats().healthy
                with pytest.raises(EngineError, match="failed while this request ran"):
                    await _answer(engine, ask(str(index), PROMPT))
                await asyncio.sleep(0.05)
            await _until(lambda: not engine.stats().healthy)
            with pytest.raises(EngineError, match="the engine has failed"):
                await _answer(engine, ask("late", PROMPT))

    _run(test)


def test_calls_run_between_steps_and_bring_back_results_and_errors(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, core):
            assert await engine.call(lambda c: c is core)
            assert await engine.call(lambda _: threading.current_thread().name) == "engine"
            with pytest.raises(ZeroDivisionError):
                await engine.call(lambda _: 1 // 0)

    _run(test)


def test_a_call_after_the_end_fails_at_once(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, _):
            held, release = threading.Event(), threading.Event()

            def hold(core: EngineCore) -> None:
                held.set()
                assert release.wait(30)

            first = asyncio.create_task(engine.call(hold))
            await _until(held.is_set)
            last = asyncio.create_task(engine.call(lambda core: 1))
            drained = asyncio.create_task(engine.drain(0))
            await asyncio.sleep(0.01)
            release.set()
            await asyncio.gather(first, drained)
            assert await last == 1  # it came in time
            with pytest.raises(EngineError, match="has stopped"):
                await engine.call(lambda core: 1)

    _run(test)


def test_a_call_given_up_does_not_hurt_the_engine(llama: Family) -> None:
    """Its caller went away while it waited for a step to end."""

    async def test() -> None:
        async with _engine(llama) as (engine, _):
            held, release = threading.Event(), threading.Event()

            def hold(core: EngineCore) -> None:
                held.set()
                assert release.wait(30)

            first = asyncio.create_task(engine.call(hold))
            await _until(held.is_set)
            second = asyncio.create_task(engine.call(lambda core: 1))
            await asyncio.sleep(0)
            first.cancel()
            second.cancel()
            await asyncio.gather(first, second, return_exceptions=True)
            release.set()
            assert (await _answer(engine, ask("x", PROMPT)))[1] == llama.expected(None, PROMPT, 8)

    _run(test)


def test_draining_lets_running_requests_finish_and_takes_no_more(llama: Family) -> None:
    async def test() -> None:
        with engine_core(llama) as core:
            engine = Engine(core)
            engine.start()
            task = asyncio.create_task(_answer(engine, ask("x", PROMPT, max_tokens=40)))
            await _until(lambda: engine.stats().running == 1)
            drained = asyncio.create_task(engine.drain(30))
            await asyncio.sleep(0)
            assert engine.draining
            with pytest.raises(EngineError, match="shutting down"):
                await _answer(engine, ask("late", PROMPT))
            assert (await task)[1] == llama.expected(None, PROMPT, 40)
            await drained

    _run(test)


def test_what_a_drain_cannot_wait_for_ends_with_an_error(llama: Family) -> None:
    async def test() -> None:
        with engine_core(llama) as core:
            engine = Engine(core)
            engine.start()
            task = asyncio.create_task(_answer(engine, ask("x", PROMPT, max_tokens=110)))
            await _until(lambda: engine.stats().running == 1)
            await engine.drain(0)
            with pytest.raises(EngineError, match="shutting down"):
                await task

    _run(test)


def test_a_stop_that_comes_as_the_thread_goes_to_sleep_is_not_lost(llama: Family) -> None:
    """Between its look at the flag and its wait nobody would hear a notification."""

    async def test() -> None:
        with engine_core(llama) as core:
            engine = Engine(core)

            class Wake(threading.Condition):
                def __enter__(self) -> bool:
                    if threading.current_thread() is engine._thread and next(turns) == 1:
                        engine._stopping = True
                    return super().__enter__()

            turns = count()
            engine._wake = Wake()
            engine.start()
            await asyncio.to_thread(engine._thread.join, 10)
            assert not engine._thread.is_alive()

    _run(test)


def test_pins_are_brought_though_nobody_asks(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, _):
            engine.pin(["all", "mlp"])
            await _until(
                lambda: {a.digest for a in engine.stats().adapters_loaded if a.pinned} == {"all", "mlp"}
            )
            assert engine.stats().pins == 2
            engine.pin(["mlp"])
            await _until(lambda: engine.stats().pins == 1)
            pinned = {adapter.digest: adapter.pinned for adapter in engine.stats().adapters_loaded}
            assert pinned == {"all": False, "mlp": True}

    _run(test)


def test_weights_are_checked_by_the_caller_and_used_by_the_core(llama: Family) -> None:
    async def test() -> None:
        async with _engine(llama) as (engine, core):
            engine.set_weights({"a": 4.0})
            assert await engine.call(lambda core: core.scheduler.queue.weight("a")) == 4
            with pytest.raises(ValueError, match="the weight of tenant 'a' is 0"):
                engine.set_weights({"a": 0})
            assert core.scheduler.queue.weight("a") == 4

    _run(test)
