"""Answers of mixed batches against transformers and PEFT, one request at a time; and what requests ask."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch

from adapters.batch.plain import PlainBatch
from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter
from server.engine.request import PoolingRequest, QueueFull
from server.engine.seq2seq.model import Seq2SeqModel
from tests.kit import Answers, ask, letters, prompts
from tests.server.engine.seq2seq.conftest import MakeFamily
from tests.server.engine.seq2seq.stand import (
    ADAPTERS,
    FAMILIES,
    START,
    Seq2SeqFamily,
    finish,
    generate,
    run_all,
    seq2seq_core,
    step_once,
)

SOURCE = prompts(9)[0]


@pytest.fixture
def flan(seq2seq: MakeFamily) -> Seq2SeqFamily:
    return seq2seq("flan")


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batches_answer_as_peft_does_alone(family: str, seq2seq: MakeFamily) -> None:
    base = seq2seq(family)
    adapters = [None, "qv", "all", "ff", "cross"] + (["head"] if family != "t5" else [])
    sources = prompts(3, 17, 1, 40)
    cases = [(adapter, source) for source in sources for adapter in adapters]
    random.Random(0).shuffle(cases)
    with seq2seq_core(base, kv_blocks=1000) as core:
        answers = run_all(core, [ask(str(i), source, name) for i, (name, source) in enumerate(cases)])
    for i, (adapter, source) in enumerate(cases):
        assert answers[str(i)].tokens == base.expected(adapter, source, 8), (adapter, len(source))
    assert len({tuple(base.expected(name, sources[1], 8)) for name in adapters}) == len(adapters)


def test_the_plain_forms_answer_the_same(flan: Seq2SeqFamily) -> None:
    model = Seq2SeqModel(
        copy.deepcopy(flan.stock),
        name="base",
        digest="d",
        make_batch=lambda groups, linears, dtype, device, sizes: PlainBatch(groups, dtype),
    )
    cases = [(name, source) for source in prompts(3, 17) for name in (None, *ADAPTERS)]
    with seq2seq_core(flan, model=model, kv_blocks=1000) as core:
        answers = run_all(core, [ask(str(i), source, name) for i, (name, source) in enumerate(cases)])
    for i, (name, source) in enumerate(cases):
        assert answers[str(i)].tokens == flan.expected(name, source, 8)


def test_requests_that_join_and_leave_do_not_disturb_each_other(flan: Seq2SeqFamily) -> None:
    chance = random.Random(1)
    answers: Answers = {}
    asked = {}
    with seq2seq_core(flan, max_running=5) as core:
        for i, source in enumerate(prompts(*(chance.randrange(1, 50) for _ in range(24)))):
            adapter = chance.choice([None, *ADAPTERS])
            tokens = chance.randrange(1, 20)
            asked[str(i)] = adapter, source, tokens
            core.submit(ask(str(i), source, adapter, max_tokens=tokens))
            for _ in range(chance.randrange(4)):
                step_once(core, answers)
            if i % 5 == 4:
                core.abort(gone := chance.choice([*asked]))
                if not (gone in answers and answers[gone].finished):
                    del asked[gone]
            core.check()
        finish(core, answers)
    assert len(asked) > 15
    for name, (adapter, source, tokens) in asked.items():
        assert answers[name].tokens == flan.expected(adapter, source, tokens), name
        assert answers[name].reason == "length"


def test_what_does_not_fit_into_memory_waits(flan: Seq2SeqFamily) -> None:
    with seq2seq_core(flan, kv_blocks=16) as core:
        for i in range(6):
            core.submit(ask(str(i), SOURCE, max_tokens=40))
        answers: Answers = {}
        most = 0
        while core.busy:
            step_once(core, answers)
            most = max(most, core.pool.used)
            assert core.occupancy[0] <= 2
        assert most == 14
        assert all(answers[str(i)].tokens == flan.expected(None, SOURCE, 40) for i in range(6))


def test_an_end_token_ends_an_answer_as_in_generate(flan: Seq2SeqFamily) -> None:
    tokens = flan.expected(None, SOURCE, 12)
    end = tokens[5]
    with seq2seq_core(flan, end_tokens=frozenset({end})) as core:
        answer = run_all(core, [ask("x", SOURCE, max_tokens=12, ignore_eos=False)])["x"]
    cut = tokens[: tokens.index(end) + 1]
    assert answer.tokens == cut
    assert (answer.reason, answer.stop_reason) == ("stop", end)
    assert answer.text == letters(cut[:-1])


def test_stop_strings_and_limits(flan: Seq2SeqFamily) -> None:
    tokens = flan.expected(None, SOURCE, 12)
    with seq2seq_core(flan) as core:
        stop = letters(tokens[6:7])
        cut = tokens.index(tokens[6])
        answer = run_all(core, [ask("x", SOURCE, max_tokens=12, stop=(stop,))])["x"]
        assert (answer.text, answer.reason, answer.stop_reason) == (letters(tokens[:cut]), "stop", stop)
        answer = run_all(core, [ask("x", SOURCE, max_tokens=1)])["x"]
        assert (answer.text, answer.reason) == (letters(tokens[:1]), "length")


def test_penalties_count_the_target_and_not_the_source(flan: Seq2SeqFamily) -> None:
    expected = generate(flan.stock, SOURCE, 10, repetition_penalty=1.7)
    assert expected != flan.expected(None, SOURCE, 10)
    with seq2seq_core(flan) as core:
        answer = run_all(core, [ask("x", SOURCE, max_tokens=10, repetition_penalty=1.7)])["x"]
    assert answer.tokens == expected


def test_scores_are_the_stock_models(flan: Seq2SeqFamily) -> None:
    with seq2seq_core(flan) as core:
        answer = run_all(core, [ask("x", SOURCE, "qv", max_tokens=5, logprobs=3), ask("y", SOURCE)])["x"]
    with torch.inference_mode():
        target = torch.tensor([[START, *answer.tokens[:-1]]])
        logits = flan.oracle("qv")(input_ids=torch.tensor([SOURCE]), decoder_input_ids=target).logits[0]
    logs = logits.log_softmax(-1)
    assert len(answer.logprobs) == 5
    for row, (token, score) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
        assert math.isclose(score.logprob, float(logs[row, token]), abs_tol=1e-4)
        assert [i for i, _ in score.top] == logs[row].topk(3).indices.tolist()


def test_a_seed_repeats_its_answer_whatever_runs_beside_it(flan: Seq2SeqFamily) -> None:
    def drawn(seed: int, beside: int) -> list[int]:
        with seq2seq_core(flan) as core:
            others = [ask(str(i), source, "all") for i, source in enumerate(prompts(*range(1, beside + 1)))]
            return run_all(core, [*others, ask("x", SOURCE, temperature=1.0, seed=seed)])["x"].tokens

    assert drawn(1, 0) == drawn(1, 7)
    assert len({tuple(drawn(seed, 0)) for seed in range(4)}) > 1


def test_refuses_what_can_never_be_answered(flan: Seq2SeqFamily) -> None:
    with seq2seq_core(flan, max_model_len=16, max_waiting=1) as core:
        with pytest.raises(ValueError, match="17 tokens do not fit into 16"):
            core.submit(ask("x", SOURCE, max_tokens=8))
        with pytest.raises(ValueError, match="do not fit"):
            core.submit(ask("x", []))
        with pytest.raises(ValueError, match="does not score its prompt"):
            core.submit(ask("x", SOURCE, max_tokens=1, prompt_logprobs=0))
        with pytest.raises(ValueError, match="only generates"):
            core.submit(PoolingRequest("x", tuple(SOURCE), "embed"))
        core.submit(ask("x", SOURCE, max_tokens=1))
        with pytest.raises(ValueError, match="request id x is in use"):
            core.submit(ask("x", SOURCE, max_tokens=1))
        with pytest.raises(QueueFull, match="1 requests wait already"):
            core.submit(ask("y", SOURCE, max_tokens=1))
        finish(core)


def test_refuses_a_length_that_its_blocks_can_not_hold(flan: Seq2SeqFamily) -> None:
    with (
        pytest.raises(ValueError, match="max_model_len is 65, but 8 blocks of 8 hold fewer tokens"),
        seq2seq_core(flan, max_model_len=65, kv_blocks=8),
    ):
        pass


def test_an_adapter_that_can_not_be_read_fails_its_own_request(flan: Seq2SeqFamily) -> None:
    def load(digest: str) -> AdapterWeights:
        raise InvalidAdapter("damaged")

    with seq2seq_core(flan, load=load) as core:
        answers = run_all(core, [ask("x", SOURCE, "qv"), ask("y", SOURCE)])
    assert isinstance(answers["x"].error, InvalidAdapter)
    assert answers["y"].tokens == flan.expected(None, SOURCE, 8)


def test_adapters_that_do_not_fit_together_take_turns(flan: Seq2SeqFamily) -> None:
    sizes = [flan.model.batch.place(flan.weights(name)).nbytes for name in ("qv", "all")]
    with seq2seq_core(flan, budget=max(sizes)) as core:
        cases = {str(i): ("qv", "all")[i % 2] for i in range(6)}
        answers = run_all(core, [ask(i, SOURCE, name) for i, name in cases.items()])
        assert core.stats().adapter_evictions > 0
    assert all(answers[i].tokens == flan.expected(name, SOURCE, 8) for i, name in cases.items())


def test_a_step_that_breaks_leaves_nothing_behind(
    flan: Seq2SeqFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    with seq2seq_core(flan) as core:
        core.submit(ask("x", SOURCE))
        with monkeypatch.context() as patch:
            patch.setattr(core.model, "decode", broken)
            with pytest.raises(RuntimeError, match="the device is gone"):
                core.step()
        assert core.abort_all() == ["x"]
        assert run_all(core, [ask("x", SOURCE)])["x"].tokens == flan.expected(None, SOURCE, 8)


def test_counts_what_it_does(flan: Seq2SeqFamily) -> None:
    with seq2seq_core(flan) as core:
        run_all(core, [ask("x", SOURCE, max_tokens=5), ask("y", [5, 1], max_tokens=3)])
        stats = core.stats()
    assert (stats.prompt_tokens, stats.generated_tokens, stats.steps) == (11, 8, 5)
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
    assert stats.step_seconds >= sum(stats.step_parts.values()) * 0.999
