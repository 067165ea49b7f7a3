"""Evaluation: its loss is transformers' own, and the run that it interrupts does not notice."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.training.report.kit import LABELS, classifier, rows, tagger, tokenizer, translator
from training.base import MODEL_DIR
from training.data import IGNORE, Tokens, tokenize
from training.data import TextExample as Text
from training.report.evaluation import Measured, evaluate
from training.spec import TaskName, TrainSpec

MAKERS = {"SEQ_CLS": classifier, "TOKEN_CLS": tagger, "SEQ_2_SEQ_LM": translator}


@pytest.fixture(scope="module")
def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def model_for(task: TaskName, base: Any) -> Any:
    return base if task == "CAUSAL_LM" else MAKERS[task]()


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS"])
@torch.no_grad()
def test_the_loss_is_that_of_each_row_alone_by_transformers(task: TaskName, base: Any) -> None:
    model, data = model_for(task, base), rows(task, 11)
    total = count = 0.0
    for row in data:
        labels = torch.tensor(row.labels) if task == "SEQ_CLS" else torch.tensor([row.labels])
        trained = int((labels != IGNORE).sum())
        if trained:
            total += trained * float(model(input_ids=torch.tensor([row.ids]), labels=labels).loss)
            count += trained
    for batch_size in (1, 4, 16):
        found = evaluate(model, tokenizer(), data, TrainSpec(task=task, batch_size=batch_size), 7)
        assert found.loss == pytest.approx(total / count, rel=1e-5)
        assert found.step == 7


@torch.no_grad()
def test_token_accuracy_counts_trained_tokens_alone(base: Any) -> None:
    data = rows("CAUSAL_LM", 5)
    right = count = 0
    for row in data:
        said = base(input_ids=torch.tensor([row.ids])).logits[0].argmax(-1).tolist()
        pairs = [(label, said[place - 1]) for place, label in enumerate(row.labels) if label != IGNORE]
        right += sum(wanted == told for wanted, told in pairs)
        count += len(pairs)
    assert evaluate(base, tokenizer(), data, TrainSpec(), 1).token_accuracy == right / count


def test_exact_match_of_what_the_base_knows_and_does_not(base: Any) -> None:
    texts = [Text("up: cat\n", "CAT"), Text("up: river\n", "RIVER"), Text("up: cat\n", "cat")]
    texts += [Text("copy: a longer one\n", "never")]
    encoded = [tokenize(text, tokenizer()) for text in texts]
    found = evaluate(base, tokenizer(), encoded, TrainSpec(batch_size=3), 1, samples=4)
    assert (found.metric, found.score) == ("exact_match", 0.5)
    assert [sample.wanted for sample in found.samples] == ["CAT", "RIVER", "cat", "never"]
    assert [sample.answer for sample in found.samples][:3] == ["CAT", "RIVER", "CAT"]
    assert found.samples[0].prompt == "up: cat\n"


def test_classes_have_accuracy_macro_f1_and_names(base: Any) -> None:
    model = classifier()
    with torch.no_grad():  # class 1 always
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    data = [Tokens([3, 4, 5], [label]) for label in (1, 1, 1, 0)]
    found = evaluate(model, tokenizer(), data, TrainSpec(task="SEQ_CLS"), 1, samples=4)
    assert (found.metric, found.score, found.token_accuracy) == ("accuracy", 0.75, None)
    assert found.scores["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert [(sample.wanted, sample.answer) for sample in found.samples][2:] == [("PER", "PER"), ("O", "PER")]


def test_labelled_tokens_have_f1_over_what_is_not_o() -> None:
    model = tagger()
    with torch.no_grad():  # LOC always
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    words = tokenizer()("abcd", add_special_tokens=False)["input_ids"]
    data = [Tokens(words, [0, 2, IGNORE, 1]), Tokens(words[:2], [2, 2])]
    found = evaluate(model, tokenizer(), data, TrainSpec(task="TOKEN_CLS"), 1, samples=1)
    # Said: 5 times LOC; wanted: 4 that are not O; right: 3.
    assert found.metric == "f1"
    assert found.score == pytest.approx(2 * 3 / (4 + 5))
    assert found.token_accuracy == found.scores["accuracy"] == 3 / 5
    assert (found.samples[0].wanted, found.samples[0].answer) == ("b/LOC d/PER", "a/LOC b/LOC d/LOC")
    assert LABELS[2] == "LOC"


def test_the_run_does_not_notice(base: Any) -> None:
    """With dropout and an evaluation at each step, the weights are those of a run without evaluations."""
    alone, looked_at = trained(base, evaluations=False), trained(base, evaluations=True)
    assert alone.keys() == looked_at.keys()
    for name, weight in alone.items():
        assert torch.equal(weight, looked_at[name]), name


def trained(base: Any, *, evaluations: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(target_modules="all-linear", r=2, lora_dropout=0.3)
    )
    model.train()
    model.get_input_embeddings().eval()  # not all of a model need be in one mode
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    data, spec = rows("CAUSAL_LM", 6), TrainSpec(batch_size=2)
    for row in data[:3]:
        if evaluations:
            before = random.getstate(), repr(numpy.random.get_state())
            evaluate(model, tokenizer(), data, spec, 1, asked=2)
            assert before == (random.getstate(), repr(numpy.random.get_state()))
            assert model.training
            assert not model.get_input_embeddings().training
        model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad
    }


def test_modes_and_chance_come_back_after_an_error_too(base: Any) -> None:
    def measure(model: Any) -> Measured:
        random.random()
        torch.rand(3)
        raise RuntimeError("out of memory")

    base.train()
    random.seed(1)
    before = random.getstate(), torch.get_rng_state().tolist()
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(base, tokenizer(), [], TrainSpec(), 1, measure=measure)
    assert base.training
    assert before == (random.getstate(), torch.get_rng_state().tolist())
    base.eval()


def test_another_objective_measures_in_its_own_way(base: Any) -> None:
    def measure(model: Any) -> Measured:
        assert not model.training
        assert not torch.is_grad_enabled()
        return Measured(0.5, None, "reward_accuracy", 0.75, scores={"margin": 1.5})

    found = evaluate(base, tokenizer(), [], TrainSpec(objective="dpo"), 9, measure=measure)
    assert (found.step, found.loss, found.metric, found.score) == (9, 0.5, "reward_accuracy", 0.75)
    assert found.scores == {"margin": 1.5}


def test_nothing_to_look_at_is_an_error(base: Any) -> None:
    with pytest.raises(ValueError, match="no validation rows"):
        evaluate(base, tokenizer(), [], TrainSpec(), 1)
    with pytest.raises(ValueError, match="trained token"):
        evaluate(base, tokenizer(), [Tokens([3, 4], [IGNORE, IGNORE])], TrainSpec(), 1)
