"""Embeddings and classes beside sequences that generate: as transformers and PEFT give them alone."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from adapters.delta import AdapterWeights
from adapters.errors import InvalidAdapter
from server.engine.request import Pooling, PoolingRequest, PoolingTask
from tests.kit import Families, Family, ask, engine_core, finish, preload, prompts, run_all, step
from tests.tiny import VOCAB

CLOSE = 1e-5
PROMPTS = prompts(1, 3, 8, 17, 40)
_AUTO = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}


@dataclass
class Classifier:
    """One adapter with a trained head: PEFT's own model, and what the reader makes of its files."""

    oracle: Any
    weights: AdapterWeights

    def expected(self, prompt: Sequence[int]) -> torch.Tensor:
        """`(vectors, labels)` logits."""
        with torch.inference_mode():
            logits: torch.Tensor = self.oracle(input_ids=torch.tensor([list(prompt)])).logits
        return logits[0] if logits.dim() == 3 else logits


def train(family: Family, digest: str, task: str, labels: int) -> Classifier:
    """As PEFT trains one on transformers' own classification model of this base; random instead."""
    config = copy.deepcopy(family.stock.config)
    config.num_labels, config.pad_token_id = labels, 0
    torch.manual_seed(labels)
    model = _AUTO[task].from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.base_model.load_state_dict(family.stock.base_model.state_dict())
    lora = LoraConfig(
        r=4, lora_alpha=8, task_type=task, target_modules=family.configs["attention"]["target_modules"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = get_peft_model(model, lora).eval()
    generator = torch.Generator().manual_seed(labels)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    return Classifier(oracle, family.save(oracle, digest))


class Shop:
    """A family's generating adapters, and classifiers of different widths."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.classifiers = {
            "mood": train(family, "mood", "SEQ_CLS", 3),
            "topic": train(family, "topic", "SEQ_CLS", 7),
            "names": train(family, "names", "TOKEN_CLS", 5),
        }

    def load(self, digest: str) -> AdapterWeights:
        found = self.classifiers.get(digest)
        return self.family.weights(digest) if found is None else found.weights

    def hidden(self, adapter: str | None, prompt: Sequence[int]) -> torch.Tensor:
        """`(tokens, hidden_size)`, after the final norm."""
        model = self.family.oracle(adapter)
        model = model.base_model.model if adapter else model
        with torch.inference_mode():
            states: torch.Tensor = model.base_model(input_ids=torch.tensor([list(prompt)])).last_hidden_state
        return states[0]


@pytest.fixture(scope="module")
def shop(families: Families) -> Shop:
    return Shop(families("llama"))


def pool(
    request_id: str,
    prompt: Sequence[int],
    task: PoolingTask,
    adapter: str | None = None,
    pooling: Pooling = "last",
) -> PoolingRequest:
    return PoolingRequest(request_id, tuple(prompt), task, pooling, adapter)


def task_of(adapter: str) -> PoolingTask:
    return "token_classify" if adapter == "names" else "classify"


def assert_close(vectors: Sequence[Sequence[float]], expected: torch.Tensor) -> None:
    found = torch.tensor(vectors)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= CLOSE * expected.norm()


@pytest.mark.parametrize("prefill", [5, 64])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_classifiers_run_beside_generation(shop: Shop, prefill: int, prefix_cache: bool) -> None:
    with engine_core(shop.family, load=shop.load, prefill=prefill, prefix_cache=prefix_cache) as core:
        requests: list[Any] = []
        for index, prompt in enumerate(PROMPTS):
            requests += [pool(f"{name}-{index}", prompt, task_of(name), name) for name in shop.classifiers]
            requests += [ask(f"{name}-{index}", prompt, name) for name in (None, "all", "mlp")]
        random.Random(prefill).shuffle(requests)
        answers = run_all(core, requests)
    for index, prompt in enumerate(PROMPTS):
        for name, classifier in shop.classifiers.items():
            assert_close(answers[f"{name}-{index}"].vectors, classifier.expected(prompt))
        for adapter in (None, "all", "mlp"):
            assert answers[f"{adapter}-{index}"].tokens == shop.family.expected(adapter, prompt, 8)


@pytest.mark.parametrize("model", ["model", "plain"])
@pytest.mark.parametrize("adapter", [None, "all", "patterns"])
def test_embeddings(shop: Shop, adapter: str | None, model: str) -> None:
    pooled: dict[Pooling, Callable[[torch.Tensor], torch.Tensor]] = {
        "last": lambda states: states[-1:],
        "mean": lambda states: states.mean(0, keepdim=True),
        "cls": lambda states: states[:1],
    }
    with engine_core(shop.family, prefill=7, model=getattr(shop.family, model)) as core:
        answers = run_all(
            core,
            [
                pool(f"{pooling}-{index}", prompt, "embed", adapter, pooling)
                for index, prompt in enumerate(PROMPTS)
                for pooling in pooled
            ],
        )
    for index, prompt in enumerate(PROMPTS):
        states = shop.hidden(adapter, prompt)
        for pooling, take in pooled.items():
            assert_close(answers[f"{pooling}-{index}"].vectors, take(states))


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma2", "qwen3"])
def test_other_families(families: Families, name: str) -> None:
    shop = Shop(families(name)) if name == "gpt2" else None
    family = families(name)
    with engine_core(family, load=shop.load if shop else None, prefill=9) as core:
        requests = [pool("embed", PROMPTS[3], "embed"), pool("mean", PROMPTS[3], "embed", pooling="mean")]
        if shop:
            requests += [pool(adapter, PROMPTS[3], task_of(adapter), adapter) for adapter in shop.classifiers]
        answers = run_all(core, requests)
    with torch.inference_mode():
        states = family.stock.base_model(input_ids=torch.tensor([PROMPTS[3]])).last_hidden_state[0]
    assert_close(answers["embed"].vectors, states[-1:])
    assert_close(answers["mean"].vectors, states.mean(0, keepdim=True))
    if shop:
        for adapter, classifier in shop.classifiers.items():
            assert_close(answers[adapter].vectors, classifier.expected(PROMPTS[3]))


def test_the_last_token_that_is_no_padding_is_classified(shop: Shop) -> None:
    cases = {"inside": [5, 0, 9, 0, 0], "nothing else": [0, 0, 0], "long": [*PROMPTS[3], *[0] * 20]}
    with engine_core(shop.family, load=shop.load, prefill=4) as core:
        for _ in range(2):  # the second time from the cache
            answers = run_all(core, [pool(name, p, "classify", "mood") for name, p in cases.items()])
            for name, prompt in cases.items():
                assert_close(answers[name].vectors, shop.classifiers["mood"].expected(prompt))
        assert answers["long"].cached == 16
        answers = run_all(core, [pool("embed", cases["long"], "embed")])
        assert_close(answers["embed"].vectors, shop.hidden(None, cases["long"])[-1:])


def test_what_may_come_from_the_cache(shop: Shop) -> None:
    prompt = PROMPTS[4]
    with engine_core(shop.family, load=shop.load) as core:
        run_all(core, [ask("warm", prompt, "all"), pool("mood", prompt, "classify", "mood")])
        run_all(core, [pool("names", prompt, "token_classify", "names")])
        answers = run_all(
            core,
            [
                pool("last", prompt, "embed", "all"),
                pool("mean", prompt, "embed", "all", "mean"),
                pool("first", prompt, "embed", "all", "cls"),
                pool("mood", prompt, "classify", "mood"),
                pool("names", prompt, "token_classify", "names"),
                pool("base", prompt, "embed"),
            ],
        )
        cached = {name: answer.cached for name, answer in answers.items()}
        assert cached == {"last": 32, "mean": 0, "first": 0, "mood": 32, "names": 0, "base": 0}
        states = shop.hidden("all", prompt)
        assert_close(answers["last"].vectors, states[-1:])
        assert_close(answers["mean"].vectors, states.mean(0, keepdim=True))
        assert_close(answers["mood"].vectors, shop.classifiers["mood"].expected(prompt))
        # What was pooled serves generation in turn.
        assert run_all(core, [ask("again", prompt)])["again"].cached == 32


def test_preempted_prompts_begin_again(shop: Shop) -> None:
    prompt = prompts(60, seed=5)[0]
    with engine_core(shop.family, load=shop.load, prefill=7) as core:
        preload(core, "all", "names")
        requests = [
            pool("mean", prompt, "embed", "all", "mean"),
            pool("last", prompt, "embed", "all"),
            pool("names", prompt, "token_classify", "names"),
        ]
        for request in requests:
            core.submit(request)
            for _ in range(3):
                assert not core.step()
            core.scheduler._preempt(core.scheduler.running[-1])
        core.scheduler.pacer.budget = 11  # type: ignore[attr-defined]  # other chunks than before
        answers = finish(core)
        assert core.stats().preemptions == 3
    states = shop.hidden("all", prompt)
    assert_close(answers["mean"].vectors, states.mean(0, keepdim=True))
    assert_close(answers["last"].vectors, states[-1:])
    assert_close(answers["names"].vectors, shop.classifiers["names"].expected(prompt))


def test_a_step_of_one_token_prompts(shop: Shop) -> None:
    with engine_core(shop.family, load=shop.load, block_size=1, kv_blocks=256) as core:
        answers = run_all(core, [pool("a", [9], "embed"), pool("b", [9], "classify", "mood"), ask("c", [9])])
        assert_close(answers["a"].vectors, shop.hidden(None, [9]))
        assert_close(answers["b"].vectors, shop.classifiers["mood"].expected([9]))
        assert answers["c"].tokens == shop.family.expected(None, [9], 8)


def test_a_prompt_may_fill_the_whole_context(shop: Shop) -> None:
    prompt = prompts(128, seed=3)[0]
    with engine_core(shop.family, kv_blocks=16) as core:
        assert_close(run_all(core, [pool("x", prompt, "embed")])["x"].vectors, shop.hidden(None, prompt)[-1:])
        with pytest.raises(ValueError, match="129 tokens do not fit into 128"):
            core.submit(pool("y", [*prompt, 5], "embed"))


def test_no_head_no_class(shop: Shop) -> None:
    with engine_core(shop.family, load=shop.load) as core:
        for task in ("classify", "token_classify"):
            with pytest.raises(ValueError, match="no head"):
                core.submit(pool("x", [5], task))
        core.submit(pool("x", PROMPTS[3], "classify", "all"))
        core.submit(ask("y", PROMPTS[3], "all"))
        answers = finish(core)
        assert isinstance(answers["x"].error, InvalidAdapter)
        assert "adapter all has no head to classify with" in str(answers["x"].error)
        assert answers["y"].tokens == shop.family.expected("all", PROMPTS[3], 8)


def test_a_base_that_hides_its_states_says_so(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.family.model.pools
    with engine_core(shop.family) as core:
        monkeypatch.setattr(core.model, "pools", False)
        with pytest.raises(ValueError, match="does not show its last hidden states"):
            core.submit(pool("x", [5], "embed"))


def test_an_aborted_prompt_frees_all_that_it_held(shop: Shop) -> None:
    with engine_core(shop.family, load=shop.load, prefill=8) as core:
        core.submit(pool("x", PROMPTS[4], "token_classify", "names"))
        while not core.pool.used:
            step(core)
        core.abort("x")
        finish(core)
        assert not core.busy


def test_vectors_are_as_wide_as_they_should_be(shop: Shop) -> None:
    with engine_core(shop.family, load=shop.load) as core:
        answers = run_all(core, [pool("x", [5, 6], "embed"), pool("y", [5, 6], "token_classify", "names")])
    assert [len(vector) for vector in answers["x"].vectors] == [48]
    assert [len(vector) for vector in answers["y"].vectors] == [5, 5]
    assert VOCAB not in (48, 5)
