"""A registry and a core together, used as the server uses them: resolve, hold, submit, answer, release."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters.registry.registry import Registry
from server.engine.core import EngineCore, Results
from tests.kit import LIMITS, Answer, Family, ask, engine_core, step


class World:
    """Attributes:
    contents: which of the family's adapters a digest is.
    asked: what each request was resolved to when it came: digest, prompt, tokens.
    """

    def __init__(self, family: Family, registry: Registry, core: EngineCore) -> None:
        self.family = family
        self.registry = registry
        self.core = core
        self.contents: dict[str | None, str | None] = {None: None}
        self.asked: dict[str, tuple[str | None, list[int], int]] = {}
        self.answers: dict[str, Answer] = {}

    def publish(self, name: str, content: str) -> str:
        """Publish one of the family's adapters; returns its digest."""
        version, _ = self.registry.publish_folder(name, self.family.adapter(content))
        self.contents[version.digest] = content
        return version.digest

    def submit(self, ref: str | None, prompt: list[int], tokens: int, scope: str = "") -> str:
        """Ask `ref` (None: the base) and hold its version until the answer is over."""
        digest = None if ref is None else self.registry.resolve(ref).digest
        if digest is not None:
            self.registry.hold(digest)
        request_id = str(len(self.asked))
        self.asked[request_id] = digest, prompt, tokens
        self.answers[request_id] = Answer()
        self.core.submit(ask(request_id, prompt, digest, max_tokens=tokens, scope=scope))
        return request_id

    @property
    def live(self) -> list[str]:
        return [request_id for request_id, answer in self.answers.items() if not answer.finished]

    def cancel(self, request_id: str) -> None:
        self.core.abort(request_id)
        self.answers[request_id].error = CancelledError()
        self._release(request_id)

    def step(self) -> Results:
        results = step(self.core)
        for request_id, result in results:
            self.answers[request_id].add(result)
            if self.answers[request_id].finished:
                self._release(request_id)
        return results

    def finish(self) -> None:
        """Answer everything, and see that nothing is kept."""
        for _ in range(20_000):
            if not self.core.busy:
                break
            self.step()
        assert not self.live
        self.core.check()
        assert self.core.pool.used == 0
        assert not self.core.residency.device.leases

    def wrong(self) -> list[str]:
        """Requests whose answer is not that of the version they were resolved to."""
        wrong = []
        for request_id, (digest, prompt, tokens) in self.asked.items():
            answer = self.answers[request_id]
            expected = self.family.expected(self.contents[digest], prompt, 9)[:tokens]
            if isinstance(answer.error, CancelledError):
                expected = expected[: len(answer.tokens)]
            elif answer.error is not None:
                wrong.append(f"{request_id}: {answer.error}")
            if answer.tokens != expected:
                wrong.append(f"{request_id} of {self.contents[digest]}: {answer.tokens}, not {expected}")
        return wrong

    def _release(self, request_id: str) -> None:
        digest = self.asked[request_id][0]
        if digest is not None:
            self.registry.release(digest)


class CancelledError(Exception):
    """The client went away."""


@contextmanager
def world(family: Family, **options: Any) -> Iterator[World]:
    """A fresh registry, and a core that loads from it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Registry(Path(folder), family.model.spec, LIMITS) as registry,
        engine_core(family, load=registry.load, **options) as core,
    ):
        yield World(family, registry, core)


def one_adapter(family: Family) -> int:
    """Bytes of the largest adapter: a budget that holds any one of them."""
    return max(family.place(family.weights(name)).nbytes for name in family.adapters)
