"""Who runs when: decoding never pauses, turns are fair, memory for adapters is shared, loads stall nobody."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from adapters.delta import AdapterWeights
from adapters.errors import AdapterError, InvalidAdapter
from server.engine.core import EngineCore
from server.engine.request import GenerationOutput
from server.engine.sequence import Sequence
from server.engine.stats import TenantStats
from tests.kit import (
    Answers,
    Families,
    Family,
    ask,
    collect,
    engine_core,
    finish,
    preload,
    prompts,
    run_all,
    step,
)

SHORT = prompts(6)[0]


def _plans(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Records every plan as request id -> tokens."""
    plans: list[dict[str, int]] = []
    run = core.runner.run

    def record(plan: object) -> object:
        assert isinstance(plan, dict)
        plans.append({sequence.request.request_id: tokens for sequence, tokens in plan.items()})
        return run(plan)

    monkeypatch.setattr(core.runner, "run", record)
    return plans


def _one_adapter(family: Family) -> int:
    return max(family.place(family.weights(name)).nbytes for name in family.adapters)


def test_a_long_prompt_stalls_no_decoding_row(families: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_core(families("llama"), max_model_len=256, max_batch_tokens=24) as core:
        answers: Answers = {}
        for index in range(8):
            core.submit(ask(f"d{index}", SHORT, max_tokens=60))
        while core.stats().generated_tokens < 24:
            collect(answers, core.step())
        plans = _plans(core, monkeypatch)
        core.submit(ask("long", prompts(200, seed=9)[0], max_tokens=2))
        while "long" not in answers or not answers["long"].finished:
            collect(answers, core.step())
        prefilling = [plan for plan in plans if plan.get("long", 0) > 1]
        assert len(prefilling) >= 12
        assert all(plan[f"d{index}"] == 1 for plan in prefilling for index in range(8))
        assert all(sum(plan.values()) <= 24 for plan in plans)
        finish(core, answers)


def test_no_step_exceeds_its_tokens_or_its_sequences(
    families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_core(families("llama"), max_batch_tokens=20, max_running=3) as core:
        plans = _plans(core, monkeypatch)
        run_all(core, [ask(str(i), prompt) for i, prompt in enumerate(prompts(30, 7, 1, 50, 9, 12))])
        assert max(sum(plan.values()) for plan in plans) <= 20
        assert max(len(plan) for plan in plans) == 3


def test_prompts_are_computed_once(families: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_core(families("llama"), prefix_cache=False, prefill=16) as core:
        plans = _plans(core, monkeypatch)
        run_all(core, [ask(str(i), prompt, max_tokens=5) for i, prompt in enumerate(prompts(30, 7, 50))])
        computed: Counter[str] = Counter()
        for plan in plans:
            computed.update(plan)
        assert computed == {"0": 34, "1": 11, "2": 54}
        stats = core.stats()
        assert (stats.prompt_tokens, stats.generated_tokens) == (87, 15)
        assert stats.steps == len(plans)


def test_a_flood_on_one_adapter_does_not_hold_up_another(families: Families) -> None:
    """Fifty requests of ten tokens run eight at a time; a single one waits for one place, not for all."""
    with engine_core(families("llama"), max_running=8, prefix_cache=False, prefill=64) as core:
        preload(core, "all", "mlp")
        for index in range(50):
            core.submit(ask(f"flood{index}", SHORT, "all", max_tokens=10))
        answers: Answers = {}
        for _ in range(3):
            collect(answers, core.step())
        core.submit(ask("single", SHORT, "mlp", max_tokens=3))
        steps = 0
        while "single" not in answers or not answers["single"].finished:
            collect(answers, core.step())
            steps += 1
        assert steps <= 10 + 3 + 2
        assert sum(answer.finished for answer in answers.values()) <= 17
        finish(core, answers)


def test_two_adapters_get_the_same_share(families: Families) -> None:
    with engine_core(families("llama"), max_running=4, prefix_cache=False, prefill=64) as core:
        preload(core, "all", "mlp")
        for index in range(40):
            core.submit(ask(f"all-{index}", SHORT, "all", max_tokens=5))
        for index in range(10):
            core.submit(ask(f"mlp-{index}", SHORT, "mlp", max_tokens=5))
        answers: Answers = {}
        while sum(a.finished for name, a in answers.items() if name.startswith("mlp")) < 10:
            collect(answers, core.step())
        others = sum(a.finished for name, a in answers.items() if name.startswith("all"))
        assert 6 <= others <= 14
        finish(core, answers)


def test_with_room_for_one_adapter_two_streams_both_go_on(families: Families) -> None:
    """Each stream always has a request waiting, so that a lease of the other is never idle by itself."""
    family = families("llama")
    with engine_core(family, budget=_one_adapter(family), prefix_cache=False, prefill=64) as core:
        done: Counter[str] = Counter()
        sent: Counter[str] = Counter()

        def send(adapter: str) -> None:
            core.submit(ask(f"{adapter}-{sent[adapter]}", SHORT, adapter, max_tokens=4))
            sent[adapter] += 1

        for adapter in ("all", "mlp"):
            for _ in range(3):
                send(adapter)
        deadline = time.monotonic() + 60
        while min(done["all"], done["mlp"]) < 6:
            assert time.monotonic() < deadline, done
            for request_id, result in step(core):
                assert isinstance(result, GenerationOutput)
                if result.finish_reason:
                    adapter = request_id.partition("-")[0]
                    done[adapter] += 1
                    send(adapter)
            core.check()
        assert max(done.values()) <= 6 * min(done.values())
        core.abort_all()
        core.check()


def test_an_adapter_whose_request_went_away_leaves_the_way_to_others(families: Families) -> None:
    """`all` keeps its lease by a stream that never pauses; `mlp` waited for its room and was cancelled."""
    family = families("llama")
    with engine_core(family, budget=_one_adapter(family), prefix_cache=False, prefill=64) as core:
        answers: Answers = {}
        sent = 0

        def advance() -> None:
            """One step, before which the stream gets a new request if its last one is about to end."""
            nonlocal sent
            live = [*core.scheduler.running, *core.scheduler.queue.waiting()]
            stream = [
                s.request.sampling.max_tokens - s.generated
                for s in live
                if isinstance(s, Sequence) and s.request.adapter == "all"
            ]
            if max(stream, default=0) < 4:
                core.submit(ask(f"all{sent}", SHORT, "all", max_tokens=9))
                sent += 1
                assert sent < 100, "nobody else gets a turn"
            collect(answers, step(core))

        preload(core, "all")
        advance()
        core.submit(ask("gone", SHORT, "mlp"))
        while not core.residency.lacks_room("mlp"):
            advance()
        core.abort("gone")
        core.submit(ask("wanted", SHORT, "attention", max_tokens=2))
        while not ("wanted" in answers and answers["wanted"].finished):
            advance()
        assert answers["wanted"].tokens == family.expected("attention", SHORT, 2)
        finish(core, answers)


def test_loading_an_adapter_stalls_no_other_request(families: Families) -> None:
    family = families("llama")
    family.adapter("mlp")
    started, release = threading.Event(), threading.Event()

    def slow(digest: str) -> AdapterWeights:
        weights = family.weights(digest)
        if digest == "mlp":
            started.set()
            assert release.wait(30)
        return weights

    with engine_core(family, load=slow) as core:
        preload(core, "all")
        core.submit(ask("slow", SHORT, "mlp", max_tokens=4))
        assert started.wait(30)
        answers: Answers = {}
        running = {"base": None, "adapter": "all"}
        for name, adapter in running.items():
            core.submit(ask(name, SHORT, adapter, max_tokens=30))
        longest = 0.0
        while not all(name in answers and answers[name].finished for name in running):
            began = time.monotonic()
            collect(answers, core.step())
            longest = max(longest, time.monotonic() - began)
        assert "slow" not in answers
        assert core.residency.state("mlp") == "disk"
        assert longest < 5
        release.set()
        finish(core, answers)
        assert answers["slow"].tokens == family.expected("mlp", SHORT, 4)


def test_a_failing_load_fails_its_own_requests_only(families: Families) -> None:
    family = families("llama")

    def load(digest: str) -> AdapterWeights:
        if digest.startswith("broken"):
            raise InvalidAdapter(f"{digest} is damaged")
        return family.weights(digest)

    with engine_core(family, load=load) as core:
        requests = [
            ask(f"{adapter}-{i}", SHORT, adapter, max_tokens=4)
            for i in range(2)
            for adapter in ("all", "broken1", None, "broken2")
        ]
        answers = run_all(core, requests)
        for request in requests:
            answer = answers[request.request_id]
            if str(request.adapter).startswith("broken"):
                assert isinstance(answer.error, AdapterError)
                assert str(answer.error) == f"{request.adapter} is damaged"
                assert not answer.tokens
            else:
                assert answer.tokens == family.expected(request.adapter, SHORT, 4)


def test_requests_with_a_common_prefix_wait_to_share_it(families: Families) -> None:
    """Two that arrive together compute their long common prefix once."""
    family = families("llama")
    prefix = prompts(64, seed=5)[0]
    with engine_core(family, prefill=16) as core:
        requests = [ask(str(i), [*prefix, 5 + i, 9], max_tokens=3) for i in range(3)]
        answers = run_all(core, requests)
        assert [answers[str(i)].cached for i in range(3)] == [0, 64, 64]
        assert core.stats().prompt_tokens == 66 + 2 + 2
        for request in requests:
            assert answers[request.request_id].tokens == family.expected(None, request.prompt, 3)


def test_a_shared_system_prompt_is_computed_once_though_most_of_each_prompt_is_its_own(
    families: Families,
) -> None:
    family = families("llama")
    system, *rest = prompts(32, 60, 60, 60, seed=5)
    with engine_core(family, prefill=16) as core:
        requests = [ask(str(i), [*system, *own], "all", max_tokens=2) for i, own in enumerate(rest)]
        answers = run_all(core, requests)
        assert [answers[str(i)].cached for i in range(3)] == [0, 32, 32]
        for request in requests:
            assert answers[request.request_id].tokens == family.expected("all", request.prompt, 2)


def test_a_flood_of_prompts_does_not_evict_another_adapters_system_prompt(families: Families) -> None:
    family = families("llama")
    system = prompts(48, seed=5)[0]
    with engine_core(family, kv_blocks=32, max_running=2, max_model_len=64) as core:
        run_all(core, [ask("first", [*system, 5], "mlp", max_tokens=2)])
        flood = [
            ask(f"flood{i}", prompt, "all", max_tokens=2) for i, prompt in enumerate(prompts(*[50] * 12))
        ]
        run_all(core, flood)
        again = ask("again", [*system, 7], "mlp", max_tokens=2)
        answer = run_all(core, [again])["again"]
        assert answer.cached == 48
        assert answer.tokens == family.expected("mlp", again.prompt, 2)


def test_the_oldest_is_never_preempted(families: Families) -> None:
    with engine_core(families("llama"), kv_blocks=8, max_model_len=64, prefix_cache=False) as core:
        for index in range(6):
            core.submit(ask(str(index), SHORT, max_tokens=40))
        answers: Answers = {}
        first_blocks = 0
        while "0" not in answers or not answers["0"].finished:
            collect(answers, core.step())
            oldest = next((s for s in core.scheduler.running if s.request.request_id == "0"), None)
            if oldest is not None:
                assert len(oldest.blocks) >= first_blocks
                first_blocks = len(oldest.blocks)
            core.check()
        assert core.stats().preemptions > 0
        finish(core, answers)
        assert len({tuple(answer.tokens) for answer in answers.values()}) == 1


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_request_that_fills_the_whole_cache_runs(families: Families, max_tokens: int) -> None:
    with engine_core(families("llama"), kv_blocks=4, max_model_len=32) as core:
        prompt = prompts(32 - max_tokens)[0]
        answers = run_all(core, [ask("x", prompt, max_tokens=max_tokens, prompt_logprobs=0)])
        assert len(answers["x"].prompt_logprobs or ()) == len(prompt)
        assert len(answers["x"].tokens) == max_tokens


def test_turns_alternate_among_the_newcomers_of_one_step(
    families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families("llama")
    flood, other = list(family.adapters)[:2]
    with engine_core(family, max_running=4, prefix_cache=False) as core:
        preload(core, flood, other)
        plans = _plans(core, monkeypatch)
        for index, prompt in enumerate(prompts(*[6] * 8)):
            core.submit(ask(f"flood{index}", prompt, flood, max_tokens=8))
        for index, prompt in enumerate(prompts(6, 6, seed=5)):
            core.submit(ask(f"other{index}", prompt, other, max_tokens=8))
        step(core)
        assert sorted(plans[0]) == ["flood0", "flood1", "other0", "other1"]


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_giving_way_to_another_tenant_changes_no_token(families: Families, prefix_cache: bool) -> None:
    family = families("llama")
    with engine_core(family, max_running=4, prefix_cache=prefix_cache, prefill=64) as core:
        preload(core, "all", "mlp")
        adapters = ["all", None, "mlp"]
        mine = [
            ask(f"a{i}", prompt, adapters[i % 3], tenant="a", max_tokens=50)
            for i, prompt in enumerate(prompts(9, 20, 5, 17, 11, 8))
        ]
        for request in mine:
            core.submit(request)
        answers: Answers = {}
        for _ in range(12):
            collect(answers, step(core))
        single = ask("b", SHORT, "mlp", tenant="b", max_tokens=5)
        core.submit(single)
        steps = 0
        while "b" not in answers or not answers["b"].finished:
            collect(answers, step(core))
            steps += 1
        assert steps <= 8 + 5 + 3
        assert core.stats().fairness_preemptions == 1
        assert not any(
            answers[request.request_id].finished for request in mine if request.request_id in answers
        )
        finish(core, answers)
        for request in [*mine, single]:
            tokens = request.sampling.max_tokens
            assert answers[request.request_id].tokens == family.expected(
                request.adapter, request.prompt, tokens
            )


def test_each_tenant_is_counted(families: Families) -> None:
    with engine_core(families("llama"), max_running=2) as core:
        for index, tenant in enumerate("aab"):
            core.submit(ask(str(index), SHORT, tenant=tenant))
        assert core.stats().tenants == {"a": TenantStats(0, 2), "b": TenantStats(0, 1)}
        step(core)
        assert core.stats().tenants == {"a": TenantStats(1, 1), "b": TenantStats(1, 0)}
        finish(core)
        assert core.stats().tenants == {}


def test_weights_reach_the_queue(families: Families) -> None:
    with engine_core(families("llama")) as core:
        core.set_weights({"a": 2.5})
        assert core.scheduler.queue.weight("a") == 2.5
