"""Shares of what runs: who gives way to whom, how soon, how often, and what it costs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine import places
from server.engine.detokenize import TextStream
from server.engine.kv import BlockPool
from server.engine.scheduler import Scheduler
from server.engine.sequence import PagedSequence, Sequence
from tests.kit import FixedPacer, Letters, ask

SOON = places._GRACE + 3  # steps


class Memory:
    """A residency in which every adapter is on the device."""

    def __init__(self) -> None:
        self.device = SimpleNamespace(leases={})

    def prefetch(self, digest: str) -> None:
        """It is there."""

    forget = prefetch

    def acquire(self, digest: str) -> Any:
        self.device.leases[digest] = self.device.leases.get(digest, 0) + 1
        return SimpleNamespace(digest=digest, invocation=())

    def release(self, digest: str) -> None:
        self.device.leases[digest] -= 1
        if not self.device.leases[digest]:
            del self.device.leases[digest]


class Machine:
    """A scheduler over a model that always says 7, and the time that its steps would take.

    A step costs 1, a decoded token 0.05 and a prefilled one 0.02 more: about as a small model on a CPU.
    """

    def __init__(self, max_running: int = 8, blocks: int = 4096, prefix_cache: bool = False) -> None:
        memory: Any = Memory()
        self.scheduler = Scheduler(
            BlockPool(blocks, 8),
            memory,
            max_batch_tokens=256,
            max_running=max_running,
            prefix_cache=prefix_cache,
        )
        self.scheduler.pacer = FixedPacer(200)  # type: ignore[assignment]
        self.steps = 0
        self.seconds = 0.0
        self.started: dict[str, int] = {}
        self.arrived: dict[str, int] = {}
        self.finished: dict[str, int] = {}
        self.sequences: dict[str, Sequence] = {}
        self.tokens = 0

    def ask(
        self, name: str, tenant: str, adapter: str | None = None, *, prompt: int = 20, tokens: int = 200
    ) -> None:
        chance = random.Random(name)
        request = ask(
            name, [chance.randrange(3, 99) for _ in range(prompt)], adapter, tenant=tenant, max_tokens=tokens
        )
        sequence = self.sequences[name] = Sequence(request, "base", 8, TextStream(Letters(), request.prompt))
        self.scheduler.add(sequence)
        self.arrived[name] = self.steps

    def step(self) -> None:
        plan, failed = self.scheduler.schedule()
        assert not failed
        decodes = sum(sequence.decoding for sequence in plan)
        self.seconds += 1 + 0.05 * decodes + 0.02 * (sum(plan.values()) - decodes)
        self.steps += 1
        self.scheduler.advance(plan)
        for sequence in plan:
            self._say(sequence)
        if self.steps % 20 == 0:
            self.scheduler.check()

    def _say(self, sequence: PagedSequence) -> None:
        name = sequence.request.request_id
        if sequence.remaining:
            return
        self.started.setdefault(name, self.steps)
        self.tokens += 1
        sequence.tokens.append(7)
        assert isinstance(sequence, Sequence)
        if sequence.generated == sequence.request.sampling.max_tokens:
            self.finished[name] = self.steps
            self.scheduler.remove(sequence)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def until(self, done: Callable[[], bool], most: int = 5000) -> None:
        for _ in range(most):
            if done():
                return
            self.step()
        raise AssertionError("it never comes")

    @property
    def set_back(self) -> dict[str, int]:
        """How often each was set back for others, if it was."""
        return {name: sequence.set_back for name, sequence in self.sequences.items() if sequence.set_back}

    def running(self) -> dict[str, int]:
        """How many places each tenant has."""
        return dict(Counter(sequence.turn[0] for sequence in self.scheduler.running))

    def wait(self, name: str) -> int:
        """Steps from its arrival to its first token."""
        return self.started[name] - self.arrived[name]


def test_a_newcomer_below_its_share_takes_the_place_of_the_newest() -> None:
    machine = Machine()
    for index in range(20):
        machine.ask(f"a{index}", "a", tokens=1000)
    machine.run(30)
    assert machine.running() == {"a": 8}
    machine.ask("b", "b", tokens=5)
    machine.until(lambda: "b" in machine.started)
    assert machine.wait("b") <= SOON
    assert machine.set_back == {"a7": 1}
    assert machine.scheduler.places.preemptions == machine.scheduler.preemptions == 1
    machine.until(lambda: "b" in machine.finished)
    machine.run(3)
    assert "a7" in {sequence.request.request_id for sequence in machine.scheduler.running}  # first of its own


def test_a_place_that_becomes_free_in_time_sets_nobody_back() -> None:
    machine = Machine()
    for index in range(100):
        machine.ask(f"a{index}", "a", tokens=10 + index % 7)
    machine.run(30)
    for index in range(5):
        machine.ask(f"b{index}", "b", tokens=5)
        machine.run(20)
    assert len([name for name in machine.finished if name.startswith("b")]) == 5
    assert machine.scheduler.preemptions == 0


def test_places_come_to_shares_by_weight_and_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_OVERHEAD", 100.0)
    machine = Machine(max_running=8)
    machine.scheduler.queue.set_weights({"b": 3.0})
    for tenant in "ab":
        for index in range(40):
            machine.ask(f"{tenant}{index}", tenant, tokens=2000)
        machine.run(60 if tenant == "a" else 200)
    assert machine.running() == {"a": 2, "b": 6}
    assert machine.scheduler.preemptions == 6
    machine.run(300)
    assert machine.scheduler.preemptions == 6


def test_with_more_tenants_than_places_each_that_waits_may_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_OVERHEAD", 100.0)
    machine = Machine(max_running=4)
    for index in range(10):
        machine.ask(f"a{index}", "a", tokens=1000)
    machine.run(5)
    for tenant in "bcdefgh":
        machine.ask(tenant, tenant, tokens=1000)
    machine.run(200)
    assert sorted(machine.running().values()) == [1] * 4
    assert machine.scheduler.preemptions == 3


def test_kv_is_shared_like_places() -> None:
    """`a` has few places, but all blocks."""
    machine = Machine(max_running=8, blocks=96)
    for index in range(4):
        machine.ask(f"a{index}", "a", prompt=160, tokens=400)
    machine.until(lambda: machine.scheduler.pool.free < 6)
    assert machine.running() == {"a": 4}
    machine.ask("b", "b", prompt=100, tokens=20)
    machine.until(lambda: "b" in machine.started, 40)
    assert machine.set_back == {"a3": 1}


def test_what_can_not_be_freed_sets_nobody_back() -> None:
    machine = Machine(max_running=8, blocks=96)
    for index in range(4):
        machine.ask(f"a{index}", "a", prompt=160, tokens=100)
    machine.run(10)
    machine.ask("b", "b", prompt=700, tokens=20)  # more than half of all
    machine.run(60)
    assert machine.scheduler.places.preemptions == 0
    machine.until(lambda: "b" in machine.finished)


def test_the_tenant_with_most_blocks_gives_them_when_one_needs_more() -> None:
    machine = Machine(max_running=8, blocks=60)
    for index in range(3):
        machine.ask(f"a{index}", "a", prompt=80, tokens=300)
    machine.run(3)
    machine.ask("b", "b", prompt=20, tokens=120)
    machine.until(lambda: "b" in machine.finished)
    assert machine.scheduler.preemptions > 0
    assert machine.finished["b"] - machine.arrived["b"] <= 130  # it was never set back
    machine.until(lambda: not machine.scheduler.queue.tenants)


def test_the_adapters_of_one_tenant_share_its_places() -> None:
    machine = Machine()
    for index in range(20):
        machine.ask(f"flood{index}", "a", "x", tokens=1000)
    machine.run(30)
    machine.ask("single", "a", "y", tokens=5)
    machine.until(lambda: "single" in machine.started)
    assert machine.wait("single") <= SOON
    assert machine.set_back == {"flood7": 1}


def test_one_who_has_its_share_sets_nobody_back() -> None:
    machine = Machine()
    for tenant in "ab":
        for index in range(4):
            machine.ask(f"{tenant}{index}", tenant, tokens=500)
    machine.run(10)
    for tenant in "ab":
        machine.ask(f"{tenant}-more", tenant, tokens=500)
    machine.run(300)
    assert machine.running() == {"a": 4, "b": 4}
    assert machine.scheduler.preemptions == 0


def test_while_a_loss_is_not_made_up_for_nobody_is_set_back() -> None:
    machine = Machine()
    for index in range(8):
        machine.ask(f"a{index}", "a", tokens=3000)
    machine.run(400)  # the newest has some 400 tokens, which are a debt of 8,000
    for tenant in "bc":
        machine.ask(tenant, tenant, tokens=3000)
    machine.run(100)
    assert machine.scheduler.preemptions == 1
    machine.until(lambda: {"b", "c"} <= {*machine.started}, 1200)
    assert machine.scheduler.preemptions == 2


def test_what_the_prefix_cache_kept_is_no_loss() -> None:
    machine = Machine(prefix_cache=True)
    for index in range(8):
        machine.ask(f"a{index}", "a", tokens=3000)
    machine.run(400)
    machine.ask("b", "b", tokens=5)
    machine.until(lambda: "b" in machine.finished)
    machine.run(2)
    assert machine.running() == {"a": 8}
    machine.ask("c", "c", tokens=5)
    machine.until(lambda: "c" in machine.started)
    assert machine.wait("c") <= SOON


def _mix(prefix_cache: bool, seed: int) -> Machine:
    """One tenant that floods long answers, and four that ask short ones now and then."""
    machine = Machine(max_running=16, prefix_cache=prefix_cache)
    chance = random.Random(seed)
    for index in range(400):
        machine.ask(
            f"flood{index}", "flood", prompt=chance.randrange(20, 300), tokens=chance.randrange(200, 800)
        )
    for step in range(3000):
        if chance.random() < 0.02:
            tenant = chance.choice("abcd")
            machine.ask(
                f"{tenant}{step}", tenant, prompt=chance.randrange(5, 60), tokens=chance.randrange(5, 60)
            )
        machine.step()
    return machine


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_giving_way_costs_little_and_nothing_is_set_back_often(
    prefix_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fair = _mix(prefix_cache, seed=3)
    monkeypatch.setattr(places, "_GRACE", 10**9)
    turns = _mix(prefix_cache, seed=3)

    def waits(machine: Machine) -> list[int]:
        return sorted(machine.wait(name) for name in machine.started if not name.startswith("flood"))

    assert turns.scheduler.preemptions == 0
    assert fair.scheduler.places.preemptions > 5
    assert fair.tokens / fair.seconds > 0.97 * turns.tokens / turns.seconds
    assert max(fair.set_back.values()) <= places._SET_BACK
    assert len(waits(fair)) >= len(waits(turns)) > 40
    assert median(waits(fair)) < 0.7 * median(waits(turns))
