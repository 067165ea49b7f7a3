"""Mixed batches of prompts, adapters and heads against PEFT and transformers, each prompt alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from adapters.batch.cuda.batch import CudaBatch
from adapters.batch.plain import PlainBatch
from adapters.errors import InvalidAdapter
from server.engine.encoder.model import EncoderModel
from server.engine.request import Pooling, PoolingRequest, PoolingTask
from tests.server.engine.encoder.stand import (
    ATTENTION,
    FAMILIES,
    Trained,
    answer,
    ask,
    prompts,
    save_base,
    serve,
)

TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


class Case:
    """One family with five adapters: classifiers of texts and of tokens, each with labels of its own."""

    def __init__(self, family: str, folder: Path) -> None:
        self.base = save_base(family, "MASKED_LM" if family != "bert" else "BODY", folder / "base")
        attention = ATTENTION.get(family, ["query", "value"])
        saved = {"modules_to_save": ["classifier", "pooler", "pre_classifier"]}

        def train(name: str, task: str, labels: int, **lora: Any) -> Trained:
            head = saved if task == "SEQ_CLS" and family not in ("bert",) else {}
            return Trained(self.base, folder / name, task, labels, len(name) + labels, **lora, **head)

        self.adapters = {
            "topics": train("topics", "SEQ_CLS", 5, target_modules=attention, r=3),
            "mood": train("mood", "SEQ_CLS", 2, target_modules=attention[:1], r=8, lora_alpha=4),
            "score": train("score", "SEQ_CLS", 1, target_modules=r".*layer\.\d+\..*(dense|lin\d?|proj)", r=2),
            "names": train("names", "TOKEN_CLS", 7, target_modules=attention, r=5),
            "words": train("words", "TOKEN_CLS", 3, target_modules=attention[-1:], r=1),
        }
        self.model = serve(self.base)

    def placed(self, model: EncoderModel) -> dict[str, Any]:
        return {name: model.batch.place(trained.weights(model)) for name, trained in self.adapters.items()}


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda family: Case(family, tmp_path_factory.mktemp(family)))


def _mixed(case: Case) -> list[PoolingRequest]:
    requests = []
    for number, prompt in enumerate(prompts(9, 1, 17, 33, 4, 12, 26)):
        name = ["topics", "names", "mood", "score", "words", "topics", "mood"][number]
        task: PoolingTask = "classify" if case.adapters[name].task == "SEQ_CLS" else "token_classify"
        requests.append(ask(f"{number}", prompt, task, name))
        requests.append(ask(f"base {number}", prompt, "embed", pooling="mean"))
    return requests


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plain", [False, True])
def test_a_mixed_batch_is_peft_alone(family: str, plain: bool, case: Any) -> None:
    own = case(family)
    model = own.model
    if plain:
        model = serve(own.base, make_batch=lambda groups, linears, dtype, *_: PlainBatch(groups, dtype))
    requests = _mixed(own)
    stock = AutoModel.from_pretrained(own.base)
    for request, vectors in zip(requests, answer(model, requests, own.placed(model)), strict=True):
        if request.adapter is None:
            with torch.inference_mode():
                hidden = stock(input_ids=torch.tensor([request.prompt])).last_hidden_state[0]
            torch.testing.assert_close(vectors[0], hidden.mean(0), **TOLERANCE)
        else:
            expected = own.adapters[request.adapter].expected(request.prompt)
            torch.testing.assert_close(vectors.view(expected.shape), expected, **TOLERANCE)


@pytest.mark.parametrize("family", ["roberta", "deberta", "deberta-v3"])
def test_other_variants_beside_each_other(family: str, case: Any, tmp_path: Path) -> None:
    own = case(family)
    attention = ATTENTION.get(family, ["query", "value"])
    variants: dict[str, dict[str, Any]] = {
        "dora": {"use_dora": True, "target_modules": attention},
        "table": {"target_modules": [*attention, "word_embeddings"]},
        "norms": {"modules_to_save": ["classifier", "output.LayerNorm"], "target_modules": attention},
        "biases": {"lora_bias": True, "target_modules": attention[:1]},
    }
    trained = {
        name: Trained(own.base, tmp_path / name, "TOKEN_CLS", labels, labels, **lora)
        for labels, (name, lora) in enumerate(variants.items(), start=2)
    }
    placed = {name: own.model.batch.place(each.weights(own.model)) for name, each in trained.items()}
    names = [*variants, *variants]
    requests = [
        ask(str(i), p, "token_classify", names[i]) for i, p in enumerate(prompts(5, 9, 30, 2, 8, 1, 3, 12))
    ]
    for request, vectors in zip(requests, answer(own.model, requests, placed), strict=True):
        expected = trained[request.adapter or ""].expected(request.prompt)
        torch.testing.assert_close(vectors, expected, **TOLERANCE)


def test_names_and_groups_are_those_of_the_task_class(case: Any) -> None:
    model = case("deberta-v3").model
    names = {name for name, _ in case("deberta-v3").adapters["mood"].oracle.base_model.model.named_modules()}
    assert {name for name in model.spec.linears if name not in names} == set()
    assert model.spec.kind == "encoder"
    assert (model.spec.task, model.spec.labels) == (None, ())
    layer = "deberta.encoder.layer.0.attention.self."
    shared = [group for group in model.batch.groups if f"{layer}query_proj" in group]
    projections = tuple(f"{layer}{name}_proj" for name in ("query", "key", "value"))
    assert shared == [projections, projections[:2]]  # on tokens, and on the table of positions


@pytest.mark.parametrize("family", ["bert", "deberta-v3"])
def test_an_adapter_of_the_bare_model_embeds(family: str, case: Any, tmp_path: Path) -> None:
    own = case(family)
    targets = ATTENTION.get(family, ["query", "value"])
    trained = Trained(own.base, tmp_path / "e", "FEATURE_EXTRACTION", 0, 3, target_modules=targets)
    placed = {"e": own.model.batch.place(trained.weights(own.model))}
    poolings: list[Pooling] = ["cls", "mean", "last"]
    requests = [
        ask(pooling, prompt, "embed", "e", pooling=pooling)
        for pooling, prompt in zip(poolings, prompts(6, 13, 4), strict=True)
    ]
    for request, vectors in zip(requests, answer(own.model, requests, placed), strict=True):
        with torch.inference_mode():
            hidden = trained.oracle(input_ids=torch.tensor([request.prompt])).last_hidden_state[0]
        expected = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[request.pooling]
        torch.testing.assert_close(vectors[0], expected, **TOLERANCE)


def test_a_head_without_the_pooler_it_was_trained_with_is_refused(case: Any, tmp_path: Path) -> None:
    own = case("deberta-v2")
    trained = Trained(own.base, tmp_path / "bare", "SEQ_CLS", 2, 3, target_modules=["query_proj"])
    with pytest.raises(
        InvalidAdapter, match=r'lacks .pooler.dense.weight.*modules_to_save=."pooler", "classifier".'
    ):
        trained.weights(own.model)


@pytest.mark.parametrize("family", ["roberta", "deberta", "deberta-v3"])
def test_bfloat16_is_near(family: str, case: Any) -> None:
    own = case(family)
    model = serve(own.base, dtype=torch.bfloat16)
    requests = [request for request in _mixed(own) if request.adapter]
    for request, vectors in zip(requests, answer(model, requests, own.placed(model)), strict=True):
        expected = own.adapters[request.adapter].expected(request.prompt)
        assert (vectors.view(expected.shape) - expected).norm() < 0.1 * expected.norm()


def test_the_kernels_of_a_gpu_serve_positions_too(case: Any) -> None:
    own = case("deberta-v3")
    model = serve(own.base, make_batch=CudaBatch)
    requests = _mixed(own)[:4]
    plain = answer(own.model, requests, own.placed(own.model))
    for ours, expected in zip(answer(model, requests, own.placed(model)), plain, strict=True):
        torch.testing.assert_close(ours, expected, **TOLERANCE)
