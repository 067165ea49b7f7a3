"""The engine in its own thread, for an asyncio server: requests go in, outputs stream back."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Generic, Protocol

from typing_extensions import TypeVar

from adapters.residency import Residency
from server.engine.core import EngineCore, Result, Results
from server.engine.fairness import check_weights
from server.engine.request import (
    EngineError,
    GenerationOutput,
    GenerationRequest,
    PoolingOutput,
    PoolingRequest,
    Request,
)
from server.engine.stats import EngineStats

log = logging.getLogger(__name__)
_FAILURES = 3  # steps that may fail in a row before the engine counts as broken
_SNAPSHOT_SECONDS = 0.1  # how old the counters may be while it runs: to collect them takes time from steps


class Core(Protocol):
    """What runs in the thread, one step after another: `EngineCore`, or that of another kind of base."""

    residency: Residency

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def busy(self) -> bool: ...

    @property
    def occupancy(self) -> tuple[int, int]: ...

    @property
    def steps(self) -> int: ...

    def submit(self, request: Request) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def abort_all(self) -> list[str]: ...

    def forget(self, digest: str) -> None: ...

    def step(self) -> Results: ...

    def set_weights(self, weights: Mapping[str, float]) -> None: ...

    def stats(self, *, healthy: bool = True) -> EngineStats: ...

    def close(self) -> None: ...


T = TypeVar("T")
C = TypeVar("C", bound=Core, default=EngineCore)


class _Stream:
    """The results of one request on the event loop's side."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Result] = asyncio.Queue()
        self.finished = False

    def put(self, result: Result) -> None:
        self._queue.put_nowait(result)

    async def next(self) -> GenerationOutput | PoolingOutput:
        result = await self._queue.get()
        self.finished = not isinstance(result, GenerationOutput) or result.finish_reason is not None
        if isinstance(result, Exception):
            raise result
        return result


class Engine(Generic[C]):
    """Runs a core in a thread of its own, which alone touches it."""

    def __init__(self, core: C) -> None:
        self.max_model_len = core.max_model_len
        self.vocab_size = core.vocab_size
        self._core = core
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[str, _Stream] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._stopped = False
        self._draining = False
        self._deliver_seconds = 0.0
        self._failures = 0
        self._snapshot()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        core.residency.on_ready = self._notify

    def start(self) -> None:
        """Start the thread; call it from the event loop that will read the answers."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationOutput, None]:
        """The outputs of one request as they come. Closing the iterator early aborts the request.

        Raises:
            QueueFull: too many requests wait.
            EngineError: the engine failed, is stopping, or refused the request.
            AdapterError: the adapter could not be loaded.
        """
        with self._submitted(request) as stream:
            while not stream.finished:
                result = await stream.next()
                assert isinstance(result, GenerationOutput)
                yield result

    async def pool(self, request: PoolingRequest) -> PoolingOutput:
        """The embedding or the classes of one prompt. Cancelling the call aborts the request.

        Raises:
            QueueFull, EngineError, AdapterError: as `generate`.
        """
        with self._submitted(request) as stream:
            result = await stream.next()
            assert isinstance(result, PoolingOutput)
            return result

    @contextmanager
    def _submitted(self, request: Request) -> Iterator[_Stream]:
        """What comes of `request`, which is aborted unless it is finished by the end of the block."""
        if self._draining or not self._stats.healthy:
            raise EngineError("the server is shutting down" if self._draining else "the engine has failed")
        stream = self._streams[request.request_id] = _Stream()
        try:
            if not self._command(lambda: self._submit(request)):
                raise EngineError("the engine has stopped")
            yield stream
        finally:
            del self._streams[request.request_id]
            if not stream.finished:
                self._command(lambda: self._core.abort(request.request_id))

    def stats(self) -> EngineStats:
        """The counters after the last step, or while it runs those of a moment ago."""
        return self._stats

    def residency(self, digest: str) -> str:
        """Where an adapter is: `device`, `host` or `disk`."""
        return self._core.residency.state(digest)

    def prefetch(self, digest: str) -> None:
        """Begin to bring an adapter into memory before anyone asks for it; returns at once."""
        if not self._draining:
            self._core.residency.warm(digest)

    def pin(self, digests: Iterable[str]) -> None:
        """Keep exactly these adapters in memory, as `Residency.pin` says; returns at once."""
        self._core.residency.pin(digests)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """How much of the batch each tenant gets beside the others; 1 for those that are not named.

        Raises:
            ValueError: a weight is not a positive, finite number.
        """
        checked = check_weights(weights)
        self._command(lambda: self._core.set_weights(checked))

    def forget(self, digest: str) -> None:
        """An adapter was deleted and no request holds it: give its memory back; returns at once."""
        self._command(lambda: self._core.forget(digest))

    @property
    def draining(self) -> bool:
        return self._draining

    async def call(self, function: Callable[[C], T]) -> T:
        """`between_steps` for the event loop."""
        return await asyncio.wrap_future(self.between_steps(function))

    def between_steps(self, function: Callable[[C], T]) -> Future[T]:
        """Have `function` run on the core between two steps; returns at once, to any thread.

        Raises:
            EngineError: the engine has stopped.
        """
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(self._core))
            except BaseException as error:
                future.set_exception(error)

        if not self._command(run):
            raise EngineError("the engine has stopped")
        return future

    async def drain(self, seconds: float) -> None:
        """Accept nothing new, let running requests finish for up to `seconds`, then stop the thread."""
        self._draining = True
        deadline = asyncio.get_running_loop().time() + seconds
        while self._streams and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        self._stopping = True
        self._notify()
        await asyncio.to_thread(self._thread.join)
        self._core.close()
        for stream in self._streams.values():
            stream.put(EngineError("the server is shutting down"))

    def _command(self, command: Callable[[], None]) -> bool:
        """Have `command` run by the thread between two steps; False once there is no thread."""
        with self._wake:
            if not self._stopped:
                self._commands.append(command)
                self._wake.notify()
            return not self._stopped

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _submit(self, request: Request) -> None:
        try:
            self._core.submit(request)
        except (EngineError, ValueError) as error:
            refusal = error if isinstance(error, EngineError) else EngineError(str(error))
            self._deliver([(request.request_id, refusal)])

    def _work(self) -> None:
        try:
            self._step_until_stopped()
        finally:
            with self._wake:
                self._stopped = True
                left = [*self._commands]
                self._commands.clear()
            for command in left:
                command()

    def _step_until_stopped(self) -> None:
        idle = False
        while not self._stopping:
            with self._wake:
                # `_stopping` is looked at under the lock: set after that, it comes with a notification.
                if idle and not self._commands and not self._stopping:
                    self._wake.wait(timeout=self._patience())
                commands = [self._commands.popleft() for _ in range(len(self._commands))]
            for command in commands:
                command()
            self._core.residency.tend()
            before = self._core.steps
            try:
                results = self._core.step()
            except Exception:
                log.exception("an engine step failed; its requests are answered with an error")
                results = self._fail_all()
                self._failures += 1
            else:
                if self._core.steps > before:  # a step with nothing to run proves nothing
                    self._failures = 0
            idle = not results and self._core.steps == before
            stepped = time.perf_counter()
            changed = self._core.occupancy != (self._stats.running, self._stats.waiting)
            if changed or not self._core.busy or stepped - self._snapshot_at > _SNAPSHOT_SECONDS:
                self._snapshot()
            self._deliver(results)
            if not idle:
                self._deliver_seconds += time.perf_counter() - stepped

    def _patience(self) -> float | None:
        """Seconds to wait for something to do. A load that ends notifies; this guards against a lost one."""
        if self._core.busy:
            return 0.1
        return 1.0 if self._core.residency.lacks_pins else None

    def _snapshot(self) -> None:
        stats = self._core.stats(healthy=self._failures < _FAILURES)
        parts = {**stats.step_parts, "deliver": self._deliver_seconds}
        self._stats = replace(stats, step_parts=parts)
        self._snapshot_at = time.perf_counter()

    def _fail_all(self) -> Results:
        """End every live request: the state of a step that broke midway is not to be trusted."""
        error = EngineError("the engine failed while this request ran; see the server's log")
        return [(request_id, error) for request_id in self._core.abort_all()]

    def _deliver(self, results: Results) -> None:
        if results and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, results)

    def _hand_out(self, results: Results) -> None:
        for request_id, result in results:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.put(result)
