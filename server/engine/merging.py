"""Automatic merge: while all requests are one adapter's, steps may run on a copy of the base with it inside.

The copy is built in a background thread that rests more than it works, and counts from the next step on. A
step with any other row takes the mixed path, as if there were no copy: nothing is switched back. In `auto`
mode both paths take turns for some steps when a copy is new, and the copy stays only if it is faster.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Set
from statistics import median
from typing import Literal

from adapters.delta import AdapterWeights, ModuleDelta
from adapters.errors import AdapterError
from adapters.merge import MergedCopy, check_mergeable, merge
from server.engine.base import ServedModel
from server.engine.stats import MergeStats

log = logging.getLogger(__name__)
Mode = Literal["on", "auto"]
ALONE_SECONDS = 5.0
"""How long one adapter must have been alone, from request to request, before a copy of it is built..."""
ALONE_TOKENS = 256
"""... and how many tokens must have been computed for it meanwhile."""
REFUSED_SECONDS = 600.0
"""How long an adapter is left alone whose copy did not pay, did not fit or could not be built."""
_REST = 3.0  # the builder rests this many times as long as it works
_PAIRS = 16  # pairs of steps, one on each path, that decide whether a copy pays
_WORTH = 0.95  # a merged step must take at most this share of a mixed one


class Cancelled(Exception):
    """A copy is not wanted any more."""


class Build:
    """One copy on its way. The thread sets `copy` or `error`, then `done`."""

    def __init__(
        self, digest: str, model: ServedModel, load: Callable[[str], AdapterWeights], budget: int
    ) -> None:
        self.digest = digest
        self.copy: MergedCopy | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self.done = threading.Event()
        self._model, self._load, self._budget = model, load, budget
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="merge", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """The thread stops at its next pause; what it has is dropped."""
        self._cancelled.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        started = self._resumed = time.perf_counter()
        try:
            weights = self._load(self.digest)
            check_mergeable(weights)
            needed = merged_bytes(self._model, weights.deltas)
            if needed > self._budget:
                raise AdapterError(
                    f"its copy takes {needed / 2**30:.2f} GiB, more than --merge-memory-gb allows"
                )
            self.copy = merge(self._model.linears.values(), weights, self._pause)
        except Exception as error:  # a full memory too: serving goes on without the copy
            self.error = error
        self.seconds = time.perf_counter() - started
        self.done.set()

    def _pause(self) -> None:
        """Rest in proportion to the work since the last rest."""
        self._cancelled.wait(_REST * (time.perf_counter() - self._resumed))
        if self._cancelled.is_set():
            raise Cancelled
        self._resumed = time.perf_counter()


def merged_bytes(model: ServedModel, deltas: Mapping[str, ModuleDelta]) -> int:
    """Bytes of the weights and new biases that a merged copy of these modules takes, before any is made."""
    parameters = 0
    for name, delta in deltas.items():
        shape = model.spec.linears[name]
        parameters += shape.in_features * shape.out_features
        if delta.magnitude is not None or delta.shift is not None:
            parameters += shape.out_features
    return parameters * int(model.dtype.itemsize)


class Trial:
    """Steps on both paths in turns, compared in pairs of equal size."""

    def __init__(self) -> None:
        self.merged = False
        self._last: tuple[int, bool, float] | None = None
        self._ratios: list[float] = []

    def record(self, rows: int, seconds: float) -> None:
        """A step of `rows` decode rows (0: it did not only decode) ran on the path that `merged` says."""
        last, self._last = self._last, (rows, self.merged, seconds) if rows else None
        if rows and last is not None and last[:2] == (rows, not self.merged):
            self._ratios.append(seconds / last[2] if self.merged else last[2] / seconds)
        self.merged = not self.merged

    @property
    def ratio(self) -> float | None:
        """A merged step's time as a share of a mixed one's, once it is known."""
        return median(self._ratios) if len(self._ratios) >= _PAIRS else None


class Merger:
    """Decides, builds and drops. All methods belong to the engine's thread."""

    def __init__(
        self,
        model: ServedModel,
        load: Callable[[str], AdapterWeights],
        mode: Mode,
        budget: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load`: reads an adapter from disk; `budget`: bytes that the copy may take; `clock`: seconds."""
        self._model, self._load, self._mode, self._budget, self._clock = model, load, mode, budget, clock
        self._alone: str | None = None
        self._since = clock()
        self._tokens = 0
        self._build: Build | None = None
        self._cancelled: Build | None = None
        self._copy: MergedCopy | None = None
        self._trial: Trial | None = None
        self._refused: dict[str, float] = {}
        self._builds = 0
        self._seconds = 0.0

    def choose(self, adapters: Set[str | None]) -> str | None:
        """Before a step: the digest whose rows may use the copy in it, if all rows are that adapter's.

        `adapters`: of all requests that run or wait; None stands for the base.
        """
        self._collect()
        alone = next(iter(adapters)) if len(adapters) == 1 else None
        if alone != self._alone:
            self._alone, self._since, self._tokens = alone, self._clock(), 0
            if self._build is not None and self._build.digest != alone:
                self._cancel()
        if self._due(adapters):
            self._begin()
        if self._copy is None or self._copy.digest != alone:
            return None
        if self._trial is not None and not self._trial.merged:
            return None
        return alone

    def record(self, tokens: int, rows: int, seconds: float) -> None:
        """After a step of `tokens`: its time, and how many rows it decoded, 0 if it did anything else."""
        self._tokens += tokens
        if self._trial is None or self._copy is None or self._copy.digest != self._alone:
            return
        self._trial.record(rows, seconds)
        ratio = self._trial.ratio
        if ratio is None:
            return
        self._trial = None
        if ratio > _WORTH:
            self._refuse(self._copy.digest, f"merged steps take {ratio:.2f} times as long as mixed ones")
            self._drop()
        else:
            log.info("merged %s: steps take %.2f times as long", self._copy.digest[:12], ratio)

    def forget(self, digest: str) -> None:
        """An adapter is deleted or out of memory: nothing of it is kept or built."""
        if self._build is not None and self._build.digest == digest:
            self._cancel()
        if self._copy is not None and self._copy.digest == digest:
            self._drop()
        self._refused.pop(digest, None)

    def close(self) -> None:
        """End a build in progress, and wait for it."""
        self._cancel()
        if self._cancelled is not None:
            self._cancelled.join()

    def stats(self) -> MergeStats:
        copy = self._copy
        if copy is None:
            return MergeStats(None, 0, self._builds, self._seconds)
        return MergeStats(copy.digest, copy.nbytes, self._builds, self._seconds)

    def _due(self, adapters: Set[str | None]) -> bool:
        """Whether one adapter, or the base, was alone for long enough, and something is to change for it."""
        if len(adapters) != 1 or self._build is not None:
            return False
        if self._copy is not None and self._copy.digest == self._alone:
            return False
        now = self._clock()
        if now - self._since < ALONE_SECONDS or self._tokens < ALONE_TOKENS:
            return False
        return self._alone is None or self._refused.get(self._alone, now) <= now

    def _begin(self) -> None:
        """The copy of the adapter that was alone before gives its memory first."""
        self._drop()
        if self._alone is not None:
            self._build = Build(self._alone, self._model, self._load, self._budget)

    def _collect(self) -> None:
        """Take over a build that is done."""
        build = self._build
        if build is None or not build.done.is_set():
            return
        self._build = None
        self._seconds += build.seconds
        if build.copy is None:
            self._refuse(build.digest, str(build.error))
            return
        self._builds += 1
        self._copy = build.copy
        self._copy.install()
        self._trial = Trial() if self._mode == "auto" else None

    def _refuse(self, digest: str, reason: str) -> None:
        log.info("%s is not merged: %s", digest[:12], reason)
        now = self._clock()
        self._refused = {known: until for known, until in self._refused.items() if until > now}
        self._refused[digest] = now + REFUSED_SECONDS

    def _cancel(self) -> None:
        if self._build is not None:
            self._build.cancel()
            self._cancelled, self._build = self._build, None

    def _drop(self) -> None:
        if self._copy is not None:
            self._copy.remove()
        self._copy = self._trial = None
