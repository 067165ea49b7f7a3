"""Sources are encoded whole, and pay for it in their turn."""

from __future__ import annotations

import torch

from adapters.residency import Residency
from server.engine.detokenize import TextStream
from server.engine.kv import BlockPool
from server.engine.seq2seq.scheduler import TargetScheduler
from server.engine.seq2seq.target import Target
from tests.kit import Letters, ask


def _scheduler(blocks: int = 64, max_batch_tokens: int = 32, max_running: int = 8) -> TargetScheduler:
    residency = Residency(lambda _: None, lambda _: None, torch.device("cpu"), 1, 1)  # type: ignore[arg-type,return-value]
    return TargetScheduler(
        BlockPool(blocks, 8),
        residency,
        max_batch_tokens=max_batch_tokens,
        max_running=max_running,
        prefix_cache=False,
    )


def _target(name: str, source: int, tenant: str = "") -> Target:
    request = ask(name, [5] * source, tenant=tenant, max_tokens=8)
    return Target(request, 0, "base", 8, TextStream(Letters(), ()))


def test_sources_start_until_a_pass_is_full() -> None:
    scheduler = _scheduler(max_batch_tokens=32)
    targets = [_target(str(i), 20) for i in range(3)]
    for target in targets:
        scheduler.add(target)
    plan, _ = scheduler.schedule()
    assert plan == {targets[0]: 1, targets[1]: 1}


def test_a_source_longer_than_a_pass_starts_all_the_same() -> None:
    scheduler = _scheduler(max_batch_tokens=16)
    scheduler.add(target := _target("x", 100))
    assert scheduler.schedule()[0] == {target: 1}


def test_targets_start_only_when_all_their_room_is_free_and_are_never_preempted() -> None:
    scheduler = _scheduler(blocks=8, max_batch_tokens=512)
    first, second = _target("1", 40), _target("2", 20)
    scheduler.add(first)
    scheduler.add(second)
    plan, _ = scheduler.schedule()
    assert plan == {first: 1}
    assert scheduler.pool.used == 6
    scheduler.advance(plan)
    first.tokens.append(7)
    assert scheduler.schedule()[0] == {first: 1}
    scheduler.remove(first)
    assert scheduler.schedule()[0] == {second: 1}
    assert scheduler.preemptions == 0


def test_long_sources_lower_the_turn_of_their_owner() -> None:
    scheduler = _scheduler(max_batch_tokens=30)
    for target in (_target("1", 30, "a"), _target("2", 4, "b"), _target("3", 4, "a"), _target("4", 4, "b")):
        scheduler.add(target)
    order = []
    for _ in range(20):
        plan, _ = scheduler.schedule()
        order += [target.request.request_id for target in plan if target.computed == 0]
        scheduler.advance(plan)
        for sequence in plan:
            sequence.tokens.append(7)
    assert order == ["1", "2", "4", "3"]
