"""Law 10: a request that is aborted, in whatever state, frees all that it held."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Any

from adapters.delta import AdapterWeights
from server.engine.core import EngineCore
from tests.kit import Families, ask, engine_core, finish, preload, prompts, run_all, step
from tests.promises.world import one_adapter

PROMPTS = prompts(2, 9, 24, 50)


def _state(core: EngineCore, request_id: str) -> str:
    sequence = core._live[request_id]
    if sequence in core.scheduler.running:
        return "decoding" if sequence.decoding else "prefilling"
    adapter = sequence.request.adapter
    if adapter is None or core.residency.state(adapter) != "disk":
        return "preempted" if sequence.generated else "waiting"
    return "waiting for room" if core.residency.lacks_room(adapter) else "loading"


def test_five_hundred_aborts_in_every_state(families: Families) -> None:
    family = families("llama")
    chance = random.Random(1)
    sizes: dict[str, Any] = {"kv_blocks": 16, "max_model_len": 100, "max_running": 5, "max_waiting": 40}
    states: Counter[str] = Counter()
    with engine_core(family, budget=one_adapter(family), prefill=6, **sizes) as core:
        count = 0
        while states.total() < 500:
            for _ in range(chance.randrange(4)):
                if len(core.scheduler.queue) < 40:
                    adapter = chance.choice([None, *family.adapters])
                    prompt, tokens = chance.choice(PROMPTS), chance.randrange(1, 40)
                    core.submit(ask(str(count), prompt, adapter, max_tokens=tokens))
                    count += 1
            for _ in range(chance.randrange(3)):
                step(core)
            for request_id in chance.sample(sorted(core._live), min(len(core._live), 2)):
                states[_state(core, request_id)] += 1
                core.abort(request_id)
                core.abort(request_id)  # once more does no harm
                core.check()
        core.abort_all()
        core.check()
        assert core.pool.used == 0
        assert not core.residency.device.leases
        assert not core.busy
        assert len(core.scheduler.queue) == 0
        assert min(states[kind] for kind in ("waiting", "loading", "prefilling", "decoding")) >= 5, states
        answer = run_all(core, [ask("after", PROMPTS[2], "all")])["after"]
        assert answer.tokens == family.expected("all", PROMPTS[2], 8)


def test_an_abort_while_its_adapter_is_read_leaves_a_load_that_harms_nobody(families: Families) -> None:
    family = families("llama")
    release = threading.Event()

    def load(digest: str) -> AdapterWeights:
        assert release.wait(30)
        return family.weights(digest)

    with engine_core(family, load=load) as core:
        for index in range(4):
            core.submit(ask(str(index), PROMPTS[1], "all"))
        assert core.step() == []
        for index in range(4):
            core.abort(str(index))
        core.check()
        release.set()
        preload(core, "all")
        core.check()
        assert core.residency.device.leases == {}


def test_one_of_many_siblings_takes_nothing_from_the_others(families: Families) -> None:
    """Samples of one prompt share its KV blocks; the first to leave must not free them."""
    family = families("llama")
    with engine_core(family, prefill=64) as core:
        for index in range(6):
            core.submit(ask(str(index), PROMPTS[3], "all", max_tokens=12))
        while core.stats().running < 6:
            step(core)
        shared = set.intersection(*(set(s.blocks) for s in core.scheduler.running))
        assert len(shared) == 50 // 8
        for index in (0, 3):
            core.abort(str(index))
            core.check()
        core.submit(ask("new", PROMPTS[2], max_tokens=12))  # writes into what was freed
        answers = finish(core)
        remaining = family.expected("all", PROMPTS[3], 12)
        for index in (1, 2, 4, 5):
            tokens = answers[str(index)].tokens
            assert tokens == remaining[-len(tokens) :]
        assert answers["new"].tokens == family.expected(None, PROMPTS[2], 12)
