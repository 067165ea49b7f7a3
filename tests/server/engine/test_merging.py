"""The automatic merge: answers stay PEFT's whatever is built, used, dropped or cancelled meanwhile."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter
from server.engine import merging
from server.engine.base import ServedModel
from server.engine.core import EngineCore
from server.engine.merging import Merger, Trial, merged_bytes
from tests.kit import (
    AMPLE,
    Answers,
    Families,
    Family,
    ask,
    collect,
    engine_core,
    finish,
    prompts,
    run_all,
    step,
)

PROMPT = prompts(9)[0]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second and one token alone are enough, and the builder does not rest."""
    monkeypatch.setattr(merging, "ALONE_SECONDS", 1.0)
    monkeypatch.setattr(merging, "ALONE_TOKENS", 1)
    monkeypatch.setattr(merging, "_REST", 0.0)


class Served:
    """A core with a merger whose clock stands still, and the path that each step took."""

    def __init__(self, family: Family, core: EngineCore, merger: Merger, clock: list[float]) -> None:
        self.family, self.core, self.merger, self._clock = family, core, merger, clock
        self.answers: Answers = {}
        self.asked: dict[str, tuple[str | None, list[int], int]] = {}
        self.paths: list[bool] = []

    def ask(self, adapter: str | None, tokens: int = 60, prompt: list[int] = PROMPT) -> str:
        request_id = str(len(self.asked))
        self.asked[request_id] = adapter, prompt, tokens
        self.core.submit(ask(request_id, prompt, adapter, max_tokens=tokens))
        return request_id

    def step(self, count: int = 1) -> None:
        """So many forward passes, fewer if nothing is left to run."""
        for _ in range(count):
            before = self.core.steps
            while self.core.steps == before and self.core.busy:
                collect(self.answers, step(self.core))
            if self.core.steps > before:
                self.paths.append(self.core.model.batch.use_merged)

    def building(self) -> merging.Build | None:
        return self.merger._build

    def wait(self) -> None:
        self._clock[0] += 2.0

    def until_merged(self, digest: str) -> None:
        """Step until the copy of `digest` is in use."""
        self.step(2)
        self.wait()
        for _ in range(200):
            self.step()
            if build := self.building():
                assert build.done.wait(30)
            if self.core.model.batch.use_merged:
                assert self.merger.stats().digest == digest
                return
        raise AssertionError("no step was merged")

    def check(self) -> None:
        """Finish everything; each answer is PEFT's."""
        finish(self.core, self.answers)
        for request_id, (adapter, prompt, tokens) in self.asked.items():
            if request_id in self.answers and self.answers[request_id].finished:
                assert self.answers[request_id].tokens == self.family.expected(adapter, prompt, tokens)


@contextmanager
def served(
    family: Family,
    mode: merging.Mode = "on",
    budget: int = AMPLE,
    load: Callable[[str], AdapterWeights] | None = None,
    **sizes: Any,
) -> Iterator[Served]:
    model = ServedModel(copy.deepcopy(family.stock), name="base", digest="d")
    before = model.checksum()
    clock = [0.0]
    with engine_core(family, model=model, **sizes) as core:
        core.merger = Merger(model, load or family.weights, mode, budget, lambda: clock[0])
        yield Served(family, core, core.merger, clock)
        core.close()
    assert model.checksum() == before


@pytest.fixture
def llama(families: Families) -> Family:
    return families("llama")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_switches_to_the_copy_and_back_in_the_middle_of_answers(families: Families, name: str) -> None:
    with served(families(name)) as s:
        s.ask("all", 100)
        s.until_merged("all")
        s.step(5)
        s.ask("mlp", 6)
        s.ask(None, 6)
        s.step(4)
        assert s.paths[-1:] == [False]
        s.step(30)
        s.check()
        assert s.paths[-1:] == [True]
        assert s.merger.stats().builds == 1


def test_prompts_of_the_adapter_join_on_the_copy_and_their_kv_is_the_adapters(llama: Family) -> None:
    long = prompts(40, seed=3)[0]
    with served(llama, prefill=16) as s:
        s.ask("patterns", 100)
        s.until_merged("patterns")
        s.ask("patterns", 20, long)
        s.step(10)
        assert all(s.paths[-10:])
        s.ask("mlp", 3)  # from here on the merged KV is read by the mixed path
        again = s.ask("patterns", 20, long)
        s.check()
        assert s.answers[again].cached == 32


def test_a_little_while_alone_is_not_enough(llama: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "ALONE_TOKENS", 30)
    with served(llama) as s:
        s.ask("all")
        s.wait()
        s.step(5)
        assert s.building() is None  # long enough, but too few tokens
        s.ask("mlp", 2)
        s.step(30)
        s.step(10)
        assert s.building() is None  # enough tokens, but too short a time since the other left
        s.wait()
        s.step()
        assert s.building() is not None
        s.check()


def test_when_another_is_alone_it_gets_the_copy(llama: Family) -> None:
    with served(llama) as s:
        for adapter in ("all", "mlp"):
            s.ask(adapter, 100)
            s.until_merged(adapter)
            s.check()
        merged = [layer.name for layer in s.core.model.linears.values() if layer.merged is not None]
        assert merged == [name for name in s.core.model.linears if "mlp" in name]
        s.ask(None, 30)
        s.step(2)
        s.wait()
        s.step(2)
        assert s.merger.stats().digest is None
        assert all(layer.merged is None for layer in s.core.model.linears.values())
        s.check()


class Gate:
    """A load that waits, so that something can happen during a build."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.started, self.open = threading.Event(), threading.Event()

    def __call__(self, digest: str) -> AdapterWeights:
        self.started.set()
        assert self.open.wait(30)
        return self.family.weights(digest)


def _during_a_build(s: Served, gate: Gate) -> str:
    request_id = s.ask("all", 100)
    s.step(2)
    s.wait()
    s.step()
    assert gate.started.wait(30)
    return request_id


def test_a_deletion_during_a_build_leaves_nothing_of_it(llama: Family) -> None:
    gate = Gate(llama)
    with served(llama, load=gate) as s:
        s.core.abort(_during_a_build(s, gate))
        build = s.building()
        assert build is not None
        s.core.forget("all")
        gate.open.set()
        build.join()
        assert build.copy is None
        assert s.core.residency.state("all") == "disk"
        s.ask("mlp", 5)
        s.check()
        assert s.merger.stats().digest is None


def test_a_deletion_drops_the_copy(llama: Family) -> None:
    with served(llama) as s:
        s.ask("all", 100)
        s.until_merged("all")
        s.check()
        s.core.forget("all")
        assert s.merger.stats().nbytes == 0
        assert all(layer.merged is None for layer in s.core.model.linears.values())


def test_aborts_and_others_during_a_build_hold_up_nothing(llama: Family) -> None:
    gate = Gate(llama)
    with served(llama, load=gate) as s:
        gone = _during_a_build(s, gate)
        kept = s.ask("all", 8)
        s.step()
        s.core.abort(gone)
        s.ask("mlp", 8)  # not alone any more: the build ends at its next pause
        s.step(20)
        assert s.answers[kept].finished
        gate.open.set()
        s.check()
        assert not any(s.paths)


def test_a_copy_over_the_budget_is_not_begun(llama: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = llama.weights("all").deltas
    nbytes = sum(llama.stock.get_submodule(name).weight.nbytes for name in targets)
    assert merged_bytes(llama.model, targets) == nbytes
    monkeypatch.setattr(merging, "merge", _never)
    with served(llama, budget=nbytes - 1) as s:
        s.ask("all", 40)
        s.step(2)
        s.wait()
        s.step()
        build = s.building()
        assert build is not None
        build.join()
        assert "more than --merge-memory-gb" in str(build.error)
        s.step(5)
        assert s.building() is None  # and not tried again at once
        s.check()


def _never(*_: object) -> None:
    raise RuntimeError("nothing should be allocated")


def test_an_adapter_that_can_not_be_read_is_served_mixed(llama: Family) -> None:
    def load(digest: str) -> AdapterWeights:
        raise InvalidAdapter("damaged")

    with served(llama, load=load) as s:
        s.ask("all", 30)
        s.step(2)
        s.wait()
        s.step(10)
        s.check()
        assert not any(s.paths)


def _seconds(merged: bool, factor: float) -> float:
    return 1.0 * factor if merged else 1.0


@pytest.mark.parametrize(("factor", "kept"), [(0.5, True), (0.9, True), (0.99, False), (1.5, False)])
def test_auto_keeps_a_copy_only_if_its_steps_are_faster(
    llama: Family, monkeypatch: pytest.MonkeyPatch, factor: float, kept: bool
) -> None:
    with served(llama, "auto") as s:
        record = s.merger.record
        monkeypatch.setattr(
            s.merger,
            "record",
            lambda tokens, rows, _: record(tokens, rows, _seconds(s.core.model.batch.use_merged, factor)),
        )
        s.ask("all", 100)
        s.until_merged("all")
        s.step(45)
        assert (s.merger.stats().digest == "all") is kept
        assert {True, False} <= set(s.paths[-45:])  # both were tried
        s.step(5)
        assert set(s.paths[-5:]) == {kept}
        s.wait()
        s.step(3)
        assert s.building() is None
        s.check()


def test_a_trial_compares_equal_steps_only() -> None:
    trial = Trial()
    for number in range(200):
        rows = 8 if number % 4 < 2 else 0
        trial.record(rows, 1.0 if not trial.merged else 0.5)
        trial.record(number + 100, 99.0)  # another size each time: with what should it be compared?
    assert trial.ratio is None
    for _ in range(40):
        trial.record(8, 0.5 if trial.merged else 1.0)
    assert trial.ratio == 0.5


def test_any_mixture_of_requests_gets_its_own_answers(llama: Family) -> None:
    chance = random.Random(3)
    with served(llama, kv_blocks=24, prefill=12) as s:
        for _ in range(60):
            live = [*s.core._live]
            act = chance.random()
            if act < 0.45 and len(live) < 3:
                s.ask(chance.choice(["all", "all", "mlp", None]), chance.choice([4, 20, 40]))
            elif act < 0.55 and live:
                s.core.abort(chance.choice(live))
            elif act < 0.6:
                s.core.forget(chance.choice(["all", "mlp"]))
            s.wait()
            s.step(chance.randrange(1, 9))
            s.core.check()
        s.check()
        assert {True, False} == set(s.paths)


def test_terms_are_in_the_copy_and_count(llama: Family) -> None:
    def load(digest: str) -> AdapterWeights:
        deltas = dict(llama.weights(digest).deltas)
        for number, (name, delta) in enumerate(deltas.items()):
            outputs = llama.model.spec.linears[name].out_features
            terms = torch.linspace(0.5, 1.5, outputs), torch.linspace(-1, 1, outputs)
            deltas[name] = replace(delta, magnitude=terms[0], shift=terms[1] if number % 2 else None)
        return AdapterWeights(digest, deltas)

    with engine_core(llama, load=load) as core:
        expected = run_all(core, [ask("mixed", PROMPT, "all", max_tokens=100)])["mixed"].tokens
    deltas = load("all").deltas
    plain = merged_bytes(llama.model, llama.weights("all").deltas)
    outputs = sum(llama.model.spec.linears[name].out_features for name in deltas)
    assert merged_bytes(llama.model, deltas) == plain + 4 * outputs
    assert expected != llama.expected("all", PROMPT, 100)
    with served(llama, load=load) as s:
        s.core.residency._load = load
        request = s.ask("all", 100)
        s.until_merged("all")
        finish(s.core, s.answers)
        assert s.answers[request].tokens == expected


def test_an_adapter_that_linear_maps_can_not_hold_is_served_mixed(llama: Family) -> None:
    def load(digest: str) -> AdapterWeights:
        return replace(llama.weights(digest), invocation=(5,))

    with served(llama, load=load) as s:
        s.ask("all", 30)
        s.step(2)
        s.wait()
        s.step()
        build = s.building()
        assert build is not None
        build.join()
        assert "invocation tokens" in str(build.error)
        s.step(5)
        assert s.building() is None
        s.check()
        assert not any(s.paths)
