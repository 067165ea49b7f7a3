"""A request through the core: refusals, finish reasons, text, scores, counters, and a failure midway."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from adapters.errors import AdapterError, InvalidAdapter
from server.engine.core import EngineCore
from server.engine.request import QueueFull
from tests.kit import (
    Answers,
    Families,
    Family,
    ask,
    collect,
    engine_core,
    finish,
    full_logits,
    letters,
    prompts,
    run_all,
)

PROMPT = prompts(9)[0]


@pytest.fixture
def llama(families: Families) -> Family:
    return families("llama")


def _one(core: EngineCore, **sampling: Any) -> Any:
    return run_all(core, [ask("x", PROMPT, **sampling)])["x"]


def test_refuses_what_can_never_fit(llama: Family) -> None:
    with engine_core(llama, max_model_len=16) as core:
        with pytest.raises(ValueError, match="17 tokens do not fit into 16"):
            core.submit(ask("x", PROMPT, max_tokens=8))
        with pytest.raises(ValueError, match="do not fit"):
            core.submit(ask("x", []))
        assert not core.busy
        assert len(_one(core, max_tokens=7).tokens) == 7


def test_refuses_a_context_that_its_blocks_can_not_hold(llama: Family) -> None:
    with (
        pytest.raises(ValueError, match="max_model_len is 65, but 8 KV blocks of 8 hold fewer tokens"),
        engine_core(llama, max_model_len=65, kv_blocks=8),
    ):
        pass


def test_refuses_an_id_in_use_but_takes_it_again_later(llama: Family) -> None:
    with engine_core(llama) as core:
        core.submit(ask("x", PROMPT))
        with pytest.raises(ValueError, match="in use"):
            core.submit(ask("x", PROMPT))
        finish(core)
        assert _one(core).finished


def test_refuses_more_than_may_wait(llama: Family) -> None:
    with engine_core(llama, max_waiting=3, max_running=1) as core:
        for index in range(3):
            core.submit(ask(str(index), PROMPT))
        with pytest.raises(QueueFull, match="3 requests wait"):
            core.submit(ask("late", PROMPT))
        assert core.stats().waiting == 3
        core.step()
        core.submit(ask("later", PROMPT))  # one of them runs now
        assert len(finish(core)) == 4


def test_ends_at_its_length(llama: Family) -> None:
    with engine_core(llama) as core:
        answer = _one(core, max_tokens=5)
        assert (answer.reason, answer.stop_reason, len(answer.tokens)) == ("length", None, 5)
        assert answer.text == letters(answer.tokens)


def _distinct_at(tokens: list[int], least: int) -> int:
    """The first place from `least` on whose token has not come before."""
    return next(i for i in range(least, len(tokens)) if tokens[i] not in tokens[:i])


def test_ends_at_an_end_token_which_is_no_text(llama: Family) -> None:
    expected = llama.expected(None, PROMPT, 12)
    at = _distinct_at(expected, 2)
    with engine_core(llama, end_tokens=frozenset({expected[at]})) as core:
        answer = _one(core, ignore_eos=False, max_tokens=12)
        assert (answer.reason, answer.stop_reason) == ("stop", expected[at])
        assert answer.tokens == expected[: at + 1]
        assert answer.text == letters(expected[:at])
        assert _one(core, ignore_eos=True, max_tokens=12).tokens == expected


def test_ends_at_its_own_stop_token_even_where_the_models_end_is_ignored(llama: Family) -> None:
    expected = llama.expected(None, PROMPT, 12)
    at = _distinct_at(expected, 2)
    with engine_core(llama) as core:
        answer = _one(core, stop_token_ids=frozenset({expected[at]}), max_tokens=12)
        assert (answer.reason, answer.stop_reason) == ("stop", expected[at])
        assert answer.tokens == expected[: at + 1]


@pytest.mark.parametrize("include", [False, True])
def test_ends_at_a_stop_string_over_several_tokens(llama: Family, include: bool) -> None:
    expected = llama.expected(None, PROMPT, 12)
    stop = letters(expected[3:6])
    start = letters(expected).find(stop)
    with engine_core(llama) as core:
        answer = _one(core, stop=(stop,), include_stop=include, max_tokens=12)
        assert (answer.reason, answer.stop_reason) == ("stop", stop)
        assert answer.text == letters(expected[: start + (3 if include else 0)])
        assert answer.tokens == expected[: start + 3]


def test_a_stop_string_that_ends_at_the_last_token_is_a_stop(llama: Family) -> None:
    expected = llama.expected(None, PROMPT, 12)
    at = _distinct_at(expected, 2)
    with engine_core(llama) as core:
        answer = _one(core, stop=(letters(expected[at : at + 1]),), max_tokens=at + 1)
        assert (answer.reason, answer.text) == ("stop", letters(expected[:at]))


def test_held_text_comes_with_the_last_output(llama: Family) -> None:
    expected = llama.expected(None, PROMPT, 5)
    with engine_core(llama) as core:
        answer = _one(core, stop=(letters(expected[-1:]) * 9 + "!",), max_tokens=5)
        assert answer.text == letters(expected)


def test_stops_do_not_count_before_min_tokens(llama: Family) -> None:
    expected = llama.expected(None, PROMPT, 12)
    stop = letters(expected[1:2])
    late = next((i for i in range(4, 12) if letters(expected[i : i + 1]) == stop), None)
    with engine_core(llama) as core:
        answer = _one(core, stop=(stop,), min_tokens=4, max_tokens=12)
        assert answer.tokens == expected[: late + 1 if late is not None else 12]
    with engine_core(llama, end_tokens=frozenset({expected[0]})) as core:
        answer = _one(core, min_tokens=4, max_tokens=12, ignore_eos=False)
        assert expected[0] not in answer.tokens[:4]
        assert len(answer.tokens) >= 4


def test_scores_the_prompt_across_chunks(llama: Family) -> None:
    prompt = prompts(50, seed=2)[0]
    logs = full_logits(llama.stock, prompt).log_softmax(-1)
    with engine_core(llama, prefill=7) as core:
        core.submit(ask("beside", PROMPT, "all", max_tokens=20))
        core.submit(ask("x", prompt, prompt_logprobs=2, max_tokens=0))
        answer = finish(core)["x"]
    scores = answer.prompt_logprobs
    assert answer.tokens == []
    assert (answer.reason, answer.text) == ("length", "")
    assert scores is not None
    assert scores[0] is None
    assert [score.token_id for score in scores[1:] if score] == prompt[1:]
    _close_to(logs, prompt, scores)


def _close_to(logs: torch.Tensor, prompt: list[int], scores: Any) -> None:
    assert len(scores) == len(prompt)
    for position, score in enumerate(scores[1:]):
        assert score.logprob == pytest.approx(float(logs[position, prompt[position + 1]]), abs=2e-4)
        values, ids = logs[position].topk(len(score.top))
        assert [token for token, _ in score.top] == ids.tolist()
        assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=2e-4)


def test_scores_survive_a_preemption_in_the_middle_of_the_prompt(llama: Family) -> None:
    """Recomputed from the start, the rows of a chunk are no longer those of the scores still missing."""
    prompt = prompts(45, seed=2)[0]
    with engine_core(llama, kv_blocks=8, max_model_len=64, prefill=2) as core:
        core.submit(ask("old", PROMPT[:4], max_tokens=40))
        answers: Answers = {}
        collect(answers, core.step())
        core.submit(ask("x", prompt, prompt_logprobs=1, max_tokens=2))
        finish(core, answers)
        assert core.stats().preemptions > 0
    assert answers["x"].tokens == llama.expected(None, prompt, 2)
    _close_to(full_logits(llama.stock, prompt).log_softmax(-1), prompt, answers["x"].prompt_logprobs)


def test_logprobs_are_of_the_unmodified_distribution(llama: Family) -> None:
    sampling = {"temperature": 1.5, "top_k": 3, "logit_bias": {7: 5.0}, "repetition_penalty": 1.4, "seed": 4}
    with engine_core(llama) as core:
        answer = _one(core, logprobs=2, **sampling)
    tokens = [*PROMPT, *answer.tokens]
    logs = full_logits(llama.stock, tokens).log_softmax(-1)
    for index, score in enumerate(answer.logprobs):
        row = logs[len(PROMPT) - 1 + index]
        assert score.token_id == answer.tokens[index]
        assert score.logprob == pytest.approx(float(row[score.token_id]), abs=2e-4)
        assert [token for token, _ in score.top] == row.topk(2).indices.tolist()


def test_logprobs_come_only_when_asked_for(llama: Family) -> None:
    with engine_core(llama) as core:
        core.submit(ask("x", PROMPT))
        outputs = [result for _ in range(8) for _, result in core.step()]
        assert {getattr(output, "logprobs", 0) for output in outputs} == {None}
        assert {getattr(output, "prompt_logprobs", 0) for output in outputs} == {None}


def test_a_seed_repeats_its_answer_in_company_and_after_preemption(llama: Family) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 20}
    with engine_core(llama) as core:
        alone = _one(core, **sampling).tokens
    with engine_core(llama, kv_blocks=7, max_model_len=56, prefill=4, prefix_cache=False) as core:
        others = [ask(f"o{i}", prompts(7)[0], temperature=1.0, seed=i, max_tokens=25) for i in range(3)]
        answers = run_all(core, [*others, ask("x", PROMPT, **sampling)])
        assert core.stats().preemptions > 0
        assert answers["x"].tokens == alone


def test_cached_tokens_are_told_once(llama: Family) -> None:
    with engine_core(llama) as core:
        prompt = prompts(20)[0]
        assert run_all(core, [ask("x", prompt)])["x"].cached == 0
        assert run_all(core, [ask("x", prompt)])["x"].cached == 16
        assert run_all(core, [ask("x", prompt, prompt_logprobs=0)])["x"].cached == 0  # scores need logits
        assert (core.stats().prefix_queries, core.stats().prefix_hits) == (40, 16)


def test_answers_are_cached_too_for_the_next_turn_of_a_conversation(llama: Family) -> None:
    with engine_core(llama) as core:
        first = run_all(core, [ask("x", PROMPT, max_tokens=24)])["x"].tokens
        turn = [*PROMPT, *first, 5, 6]
        answer = run_all(core, [ask("y", turn)])["y"]
        assert answer.cached == 32
        assert answer.tokens == llama.expected(None, turn, 8)


def test_a_broken_step_leaves_a_core_that_can_be_emptied(
    llama: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_core(llama) as core:
        core.residency.prefetch("all")
        for index, adapter in enumerate((None, "all")):
            core.submit(ask(str(index), PROMPT, adapter))
        while core.stats().running < 2:
            core.step()
        with monkeypatch.context() as broken:
            broken.setattr(core.model, "forward", _raise)
            with pytest.raises(RuntimeError, match="out of memory"):
                core.step()
        core.check()
        assert sorted(core.abort_all()) == ["0", "1"]
        core.check()
        assert core.pool.used == 0
        assert _one(core).tokens == llama.expected(None, PROMPT, 8)


def _raise(*_: object) -> None:
    raise RuntimeError("out of memory")


def test_a_failed_load_is_told_even_if_the_step_breaks(
    llama: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else that request's stream would wait for ever: it is no longer live, and nobody told it."""
    with engine_core(llama) as core:
        core.submit(ask("runs", PROMPT))
        core.step()
        core.submit(ask("fails", PROMPT, "missing"))
        error = InvalidAdapter("damaged")
        monkeypatch.setattr(core.residency, "acquire", _failing(error))
        with monkeypatch.context() as broken:
            broken.setattr(core.model, "forward", _raise)
            with pytest.raises(RuntimeError, match="out of memory"):
                core.step()
        core.abort_all()
        assert core.step() == [("fails", error)]
        assert core.step() == []


def _failing(error: AdapterError) -> Any:
    def acquire(digest: str) -> None:
        raise error

    return acquire


def test_counts_what_it_does(llama: Family) -> None:
    with engine_core(llama) as core:
        core.submit(ask("a", PROMPT, "all", max_tokens=3))
        core.submit(ask("b", PROMPT, max_tokens=3))
        before = core.stats()
        assert (before.waiting, before.running, before.adapters_waiting) == (2, 0, ("all",))
        core.residency.prefetch("all")
        while core.stats().running < 2 and core.stats().steps < 1:
            core.step()
        finish(core)
        stats = core.stats()
        assert (stats.waiting, stats.running, stats.kv_blocks_used) == (0, 0, 0)
        assert (stats.generated_tokens, stats.prompt_tokens) == (6, 18)
        assert (stats.adapters_device, stats.adapter_loads, stats.adapter_evictions) == (1, 1, 0)
        assert stats.adapter_bytes_device == llama.place(llama.weights("all")).nbytes
        assert stats.step_seconds > 0
        assert math.isfinite(stats.adapter_load_seconds)
        assert stats.healthy


def test_check_sees_a_lost_sequence_a_lost_block_and_a_lost_lease(llama: Family) -> None:
    with engine_core(llama) as core:
        core.submit(ask("x", PROMPT))
        core.step()
        core.check()
        sequence = core.scheduler.running[0]
        core.scheduler.running.remove(sequence)
        with pytest.raises(AssertionError, match="block"):
            core.check()
        core.scheduler.running.append(sequence)
        core.residency.device.lease("ghost")
        with pytest.raises(AssertionError, match="lease"):
            core.check()
        core.residency.device.release("ghost")
        core._live.pop("x")
        with pytest.raises(AssertionError, match="live"):
            core.check()
