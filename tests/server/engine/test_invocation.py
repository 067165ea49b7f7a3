"""Adapters that act from their invocation tokens on (aLoRA): PEFT's answers, with the base's KV before."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter
from server.engine.request import GenerationRequest, PoolingRequest
from server.engine.sequence import NEVER, invoked_at
from tests.kit import Families, Family, ask, engine_core, preload, prompts, run_all
from tests.tiny import greedy

X, Y, Z = 90, 91, 92
PLAIN = [[token % 90 for token in prompt] for prompt in prompts(6, 19, 40)]


class Invoked:
    """Two adapters with invocation tokens of their own, as PEFT runs them and as they are served."""

    def __init__(self, family: Family) -> None:
        self.tokens: dict[str, tuple[int, ...]] = {"check": (X, Y), "judge": (Z,)}
        self.family = family
        self.oracles: dict[str, Any] = {}
        self.weights: dict[str, AdapterWeights] = {}
        for name, invocation in self.tokens.items():
            self._make(name, invocation)
        self._answers: dict[tuple[str, tuple[int, ...], int], list[int]] = {}

    def _make(self, name: str, invocation: tuple[int, ...]) -> None:
        config = LoraConfig(
            r=4,
            lora_alpha=16,
            task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "down_proj"],
            alora_invocation_tokens=list(invocation),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle = get_peft_model(copy.deepcopy(self.family.stock), config).eval()
        generator = torch.Generator().manual_seed(sum(invocation))
        with torch.no_grad():
            for parameter_name, parameter in oracle.named_parameters():
                if "lora_" in parameter_name:
                    parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        self.oracles[name] = oracle
        self.weights[name] = self.family.save(oracle, name)

    def load(self, digest: str) -> AdapterWeights:
        return self.weights[digest] if digest in self.weights else self.family.weights(digest)

    def expected(self, adapter: str | None, prompt: Sequence[int], tokens: int = 8) -> list[int]:
        if adapter not in self.oracles:
            return self.family.expected(adapter, prompt, tokens)
        key = adapter, tuple(prompt), tokens
        if key not in self._answers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._answers[key] = greedy(self.oracles[adapter], prompt, tokens)
        return self._answers[key]

    def ask(self, request_id: str, prompt: Sequence[int], adapter: str, **fields: Any) -> GenerationRequest:
        return replace(ask(request_id, prompt, adapter, **fields), invocation=self.tokens[adapter])


@pytest.fixture(scope="module")
def invoked(families: Families) -> Invoked:
    return Invoked(families("llama"))


def places() -> list[list[int]]:
    """Prompts with the invocation of `check` in all sorts of places, and without."""
    short, middle, long = PLAIN
    return [
        [X, Y, *short],
        [*short, X, Y],
        [*middle[:8], X, Y, *middle[8:]],  # at the begin of a block of 8
        [*middle[:7], X, Y, *middle[7:]],  # across two blocks
        [X, Y, *short, X, Y, *middle],
        [*long, X, Y, X],
        [*long[:30], X, *short],
        [*long[:31], Y, X],
        [X, Y],
        long,
    ]


@pytest.mark.parametrize(
    ("prompt", "invocation", "place"),
    [
        ([1, 2, 3], (), 0),
        ([1, 2, 3], (2,), 1),
        ([1, 2, 1, 2, 1], (1, 2), 2),
        ([1, 2, 1, 2, 1], (1, 2, 1), 2),
        ([1, 2], (2, 1), NEVER),
        ([1], (1, 1), NEVER),
        ([1, 1, 1], (1, 1), 1),
    ],
)
def test_the_last_place_counts(prompt: list[int], invocation: tuple[int, ...], place: int) -> None:
    assert invoked_at(prompt, invocation) == place


def test_the_oracle_is_worth_asking(invoked: Invoked) -> None:
    base = [invoked.expected(None, prompt) for prompt in places()]
    adapted = [invoked.expected("check", prompt) for prompt in places()]
    assert [one == other for one, other in zip(base, adapted, strict=True)] == [False] * 6 + [True] * 2 + [
        False,
        True,
    ]
    # Adapted from its first token on, it would answer otherwise.
    everywhere = replace(invoked.weights["check"], digest="everywhere", invocation=())
    with engine_core(invoked.family, load=lambda digest: everywhere) as core:
        answers = run_all(core, [ask(str(i), p, "everywhere") for i, p in enumerate(places()[1:])])
    assert all(answers[str(i)].tokens != expected for i, expected in enumerate(adapted[1:6]))


@pytest.mark.parametrize("prefill", [1, 3, 8, 64])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_any_chunks_give_pefts_answer(invoked: Invoked, prefill: int, prefix_cache: bool) -> None:
    with engine_core(invoked.family, load=invoked.load, prefill=prefill, prefix_cache=prefix_cache) as core:
        requests = [invoked.ask(f"check-{i}", prompt, "check") for i, prompt in enumerate(places())]
        requests += [invoked.ask(f"judge-{i}", [*p, Z, 5], "judge") for i, p in enumerate(places())]
        requests += [ask(f"{name}-{i}", p, name) for i, p in enumerate(places()) for name in (None, "all")]
        answers = run_all(core, requests)
    for i, prompt in enumerate(places()):
        assert answers[f"check-{i}"].tokens == invoked.expected("check", prompt), i
        assert answers[f"judge-{i}"].tokens == invoked.expected("judge", [*prompt, Z, 5]), i
        assert answers[f"None-{i}"].tokens == invoked.expected(None, prompt), i
        assert answers[f"all-{i}"].tokens == invoked.expected("all", prompt), i


def test_plain_torch_gives_it_too(invoked: Invoked) -> None:
    with engine_core(invoked.family, load=invoked.load, prefill=5, model=invoked.family.plain) as core:
        answers = run_all(core, [invoked.ask(str(i), p, "check") for i, p in enumerate(places())])
    for i, prompt in enumerate(places()):
        assert answers[str(i)].tokens == invoked.expected("check", prompt), i


def test_the_bases_kv_before_the_invocation_is_shared(invoked: Invoked) -> None:
    long = PLAIN[2]
    check, judge = [*long[:36], X, Y, *PLAIN[1]], [*long[:20], Z, *long[20:]]
    with engine_core(invoked.family, load=invoked.load) as core:
        run_all(core, [ask("base", long)])
        first = run_all(core, [invoked.ask("a", check, "check"), invoked.ask("b", judge, "judge")])
        assert [first[name].cached for name in "ab"] == [32, 16]  # whole blocks of 8
        again = run_all(core, [invoked.ask("a", check, "check"), invoked.ask("b", judge, "judge")])
        assert [again[name].cached for name in "ab"] == [56, 40]
        # Nobody else gets what the adapter has touched.
        others = {
            **run_all(core, [invoked.ask("b", [*check, Z], "judge")]),
            **run_all(core, [invoked.ask("d", judge, "check"), ask("c", check, "all")]),
        }
        assert [others[name].cached for name in "bdc"] == [32, 16, 0]
        for answers in (first, again):
            assert answers["a"].tokens == invoked.expected("check", check)
            assert answers["b"].tokens == invoked.expected("judge", judge)
        assert others["b"].tokens == invoked.expected("judge", [*check, Z])
        assert others["d"].tokens == invoked.expected("check", judge)


def test_the_adapters_kv_before_the_invocation_serves_the_base(invoked: Invoked) -> None:
    prompt = [*PLAIN[2], X, Y]
    with engine_core(invoked.family, load=invoked.load) as core:
        run_all(core, [invoked.ask("a", prompt, "check")])
        answer = run_all(core, [ask("base", prompt)])["base"]
        assert (answer.cached, answer.tokens) == (40, invoked.expected(None, prompt))


def test_equal_blocks_adapted_from_different_places_are_told_apart(invoked: Invoked) -> None:
    """What follows a block says whether its last token begins the last invocation."""
    block = [X, Y, 5, 6, 7, 8, 9, X]
    with engine_core(invoked.family, load=invoked.load) as core:
        for prompt in ([*block, Y, 3], [*block, 4, 3], [*block, Y, 3]):
            answer = run_all(core, [invoked.ask("x", prompt, "check")])["x"]
            assert answer.tokens == invoked.expected("check", prompt)


def test_one_scope_never_sees_anothers(invoked: Invoked) -> None:
    prompt = [*PLAIN[2], X, Y]
    with engine_core(invoked.family, load=invoked.load) as core:
        run_all(core, [ask("base", prompt, scope="mine")])
        assert run_all(core, [invoked.ask("a", prompt, "check", scope="yours")])["a"].cached == 0


def test_a_cold_prompt_is_computed_once_for_all(invoked: Invoked) -> None:
    long = PLAIN[2]
    with engine_core(invoked.family, load=invoked.load, prefill=8) as core:
        preload(core, "check", "judge")
        requests = [ask("base", [*long, 3]), invoked.ask("a", [*long, X, Y], "check")]
        run_all(core, [*requests, invoked.ask("b", [*long, Z], "judge")])
        assert core.stats().prompt_tokens == 41 + 2 + 1


def test_preempted_sequences_come_back_adapted_from_the_same_place(invoked: Invoked) -> None:
    cases = [[*p[:12], X, Y, *p[12:]] for p in prompts(40, 41, 42, 43, seed=8)]
    cases = [[t if t in (X, Y) else t % 90 for t in case] for case in cases]
    with engine_core(invoked.family, load=invoked.load, kv_blocks=20, prefill=16) as core:
        requests = [invoked.ask(str(i), case, "check", max_tokens=30) for i, case in enumerate(cases)]
        answers = run_all(core, requests)
        assert core.stats().preemptions > 0
    for i, case in enumerate(cases):
        assert answers[str(i)].tokens == invoked.expected("check", case, 30)


def test_scored_prompts(invoked: Invoked) -> None:
    prompt = [*PLAIN[1], X, Y, *PLAIN[0]]
    with engine_core(invoked.family, load=invoked.load, prefill=4) as core:
        found = run_all(core, [invoked.ask("x", prompt, "check", prompt_logprobs=0)])["x"].prompt_logprobs
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits = invoked.oracles["check"](input_ids=torch.tensor([prompt])).logits[0]
    expected = logits.log_softmax(-1)[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
    assert found is not None
    scores = torch.tensor([score.logprob for score in found if score is not None])
    assert (scores - expected).abs().max() < 1e-4


def test_a_merged_copy_is_not_for_them(invoked: Invoked) -> None:
    prompt = [*PLAIN[1], X, Y]
    with engine_core(invoked.family, load=invoked.load) as core:
        core.runner.merged_digest = "check"
        answer = run_all(core, [invoked.ask("x", prompt, "check")])["x"]
        assert answer.tokens == invoked.expected("check", prompt)


def test_embeddings_are_adapted_from_the_same_place(invoked: Invoked) -> None:
    prompt = [*PLAIN[1], X, Y, *PLAIN[0]]
    request = PoolingRequest("x", tuple(prompt), "embed", "mean", "check", invocation=(X, Y))
    with engine_core(invoked.family, load=invoked.load, prefill=5) as core:
        (vector,) = run_all(core, [request])["x"].vectors
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = invoked.oracles["check"](input_ids=torch.tensor([prompt]), output_hidden_states=True)
    assert (torch.tensor(vector) - out.hidden_states[-1][0].mean(0)).abs().max() < 1e-5


def test_wrong_invocation_tokens_are_an_error(invoked: Invoked) -> None:
    with engine_core(invoked.family, load=invoked.load) as core:
        answers = run_all(core, [ask("x", PLAIN[0], "check"), ask("y", PLAIN[0])])
        assert isinstance(answers["x"].error, InvalidAdapter)
        assert answers["y"].tokens == invoked.expected(None, PLAIN[0])
