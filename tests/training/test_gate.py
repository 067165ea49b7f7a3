"""The gate with real adapters: the shipped ones, weaker copies of them, and small classifiers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tests.training.report.kit import classifier, tokenizer
from training.base import ADAPTERS_DIR, MODEL_DIR
from training.data import IGNORE, Example, LabelledText, Preference, TextExample, Tokens
from training.evaluate import exact_match
from training.gate import gate, guess
from training.methods import load_base, save
from training.spec import LoraSpec, TrainSpec
from training.tasks import make_examples

SPEC = TrainSpec(LoraSpec(rank=8))
ROWS: list[Example] = [
    TextExample(row.prompt, row.completion) for row in make_examples("shout", 24, split="held-out")
]
WEIGHTS = "adapter_model.safetensors"


def weaker(folder: Path, factor: float) -> Path:
    """The shipped `shout` with B scaled; 0: as if it were not trained."""
    shutil.copytree(ADAPTERS_DIR / "shout", folder)
    tensors = load_file(folder / WEIGHTS)
    scaled = {name: value * factor if "lora_B" in name else value for name, value in tensors.items()}
    save_file(scaled, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def test_a_good_one_passes_with_the_scores_that_plain_peft_has() -> None:
    found = gate(MODEL_DIR, ADAPTERS_DIR / "shout", None, ROWS, SPEC)
    assert found.passed
    model, tokens = load_base(MODEL_DIR, SPEC)
    pairs = [(row.prompt, row.completion) for row in ROWS if isinstance(row, TextExample)]
    assert found.scores["base"]["exact_match"] == exact_match(model, tokens, pairs) == 0.0
    adapted = PeftModel.from_pretrained(model, str(ADAPTERS_DIR / "shout"))
    assert found.scores["adapter"]["exact_match"] == exact_match(adapted, tokens, pairs) > 0.9
    assert "the base has 0.00" in found.reason
    assert "few" not in found.reason


@pytest.mark.parametrize("factor", [0.0, None], ids=["untrained", "of another task"])
def test_one_that_is_no_better_than_the_base_fails(tmp_path: Path, factor: float | None) -> None:
    adapter = ADAPTERS_DIR / "backwards" if factor is None else weaker(tmp_path / "weak", factor)
    found = gate(MODEL_DIR, adapter, None, ROWS, SPEC)
    assert not found.passed
    assert "the base's" in found.reason
    if factor == 0.0:
        assert found.scores["adapter"] == found.scores["base"]


def test_one_that_is_worse_than_the_current_version_fails_and_the_other_way_round_passes(
    tmp_path: Path,
) -> None:
    weak, shout = weaker(tmp_path / "weak", 0.2), ADAPTERS_DIR / "shout"
    found = gate(MODEL_DIR, weak, shout, ROWS, SPEC)
    better = gate(MODEL_DIR, shout, weak, ROWS, SPEC)
    assert not found.passed
    assert "below the current version's" in found.reason
    assert better.passed
    assert (better.scores["adapter"], better.scores["current"]) == (
        found.scores["current"],
        found.scores["adapter"],
    )


def test_the_minimum_and_few_rows_are_told() -> None:
    found = gate(MODEL_DIR, ADAPTERS_DIR / "shout", None, ROWS[:5], SPEC, 1.01)
    assert found.reason == "exact_match 1.00 is below the minimum of 1.01; 5 rows are few to judge by"


def test_an_adapter_that_lacks_weights_is_an_error(tmp_path: Path) -> None:
    folder = weaker(tmp_path / "half", 1.0)
    tensors = load_file(folder / WEIGHTS)
    save_file({name: each for name, each in tensors.items() if "down_proj" not in name}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"half does not fit this base: .*down_proj"):
        gate(MODEL_DIR, ADAPTERS_DIR / "shout", folder, ROWS, SPEC)


def test_a_current_version_whose_pattern_may_take_for_ever_is_not_compared(tmp_path: Path) -> None:
    current = weaker(tmp_path / "slow", 1.0)
    config = current / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": "(.*)*x"}))
    found = gate(MODEL_DIR, ADAPTERS_DIR / "shout", current, ROWS[:5], SPEC)
    assert found.passed
    assert "the current version was not compared: target_modules '(.*)*x' is too complex" in found.reason


def test_no_row_to_ask_is_an_error() -> None:
    with pytest.raises(ValueError, match="no row to ask"):
        gate(MODEL_DIR, ADAPTERS_DIR / "shout", None, [], SPEC)


def test_preferences_are_compared_with_a_base_that_has_none(tmp_path: Path) -> None:
    spec = TrainSpec(objective="dpo")
    pairs: list[Example] = []
    for row in ROWS:
        assert isinstance(row, TextExample)
        pairs.append(preference(row))
    found = gate(MODEL_DIR, ADAPTERS_DIR / "shout", weaker(tmp_path / "none", 0.0), pairs, spec)
    assert found.passed
    assert found.scores["adapter"]["reward_accuracy"] > 0.9
    assert found.scores["base"] == {"validation_loss": math.log(2), "reward_accuracy": 0.5}
    assert found.scores["current"]["validation_loss"] == pytest.approx(math.log(2))


def preference(row: TextExample) -> Preference:
    return Preference(row.prompt, row.completion, row.completion.lower().rstrip("!"))


# Classifiers: whether a text has more "a" than "b".


def texts(count: int) -> list[Example]:
    label = {0: "b", 1: "a"}
    return [
        LabelledText(label[index % 3 > 0] * 6 + "x" * (index % 5), label[index % 3 > 0])
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    classifier(("a", "b")).bert.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


CLASSES = TrainSpec(LoraSpec(rank=4, target_modules="all-linear", bias="all"), task="SEQ_CLS")


def trained(bert: Path, folder: Path, steps: int, labels: tuple[str, ...] = ("a", "b")) -> Path:
    """A classifier whose biases are trained too, which PEFT writes into the base that it is loaded on."""
    torch.manual_seed(0)
    model, tokens = load_base(bert, CLASSES, labels)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], bias="all")
    wrapped = get_peft_model(model, lora)
    optimizer = torch.optim.AdamW([each for each in wrapped.parameters() if each.requires_grad], lr=2e-2)
    rows = texts(12)
    for step in range(steps):
        row = rows[step % len(rows)]
        assert isinstance(row, LabelledText)
        ids = torch.tensor([tokens(row.text)["input_ids"]])
        wrapped(input_ids=ids, labels=torch.tensor([labels.index(row.label)])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save(wrapped, folder, base_name="bert", spec=CLASSES)
    return folder


def test_a_classifier_is_compared_with_the_most_frequent_label(bert: Path, tmp_path: Path) -> None:
    good, new = trained(bert, tmp_path / "good", 60), trained(bert, tmp_path / "new", 0)
    found = gate(bert, good, None, texts(30), CLASSES)
    assert found.passed, found
    assert found.scores["base"]["accuracy"] == pytest.approx(2 / 3)
    assert found.scores["adapter"]["accuracy"] == 1.0
    assert not gate(bert, new, None, texts(30), CLASSES).passed


def test_adapters_leave_nothing_in_the_base(bert: Path, tmp_path: Path) -> None:
    """The second one is measured as if it were alone, although the first one changed all biases."""
    good, new = trained(bert, tmp_path / "good", 60), trained(bert, tmp_path / "new", 1)
    after = gate(bert, good, new, texts(30), CLASSES).scores["current"]
    alone = gate(bert, new, None, texts(30), CLASSES).scores["adapter"]
    assert after == alone


def test_a_current_version_with_other_labels_is_not_compared(bert: Path, tmp_path: Path) -> None:
    good = trained(bert, tmp_path / "good", 60)
    other = trained(bert, tmp_path / "other", 0, ("a", "b", "c"))
    found = gate(bert, good, other, texts(30), CLASSES)
    assert found.passed
    assert "current" not in found.scores
    assert found.reason.endswith("the current version has other labels and was not compared")
    causal = gate(bert, good, ADAPTERS_DIR / "shout", texts(30), CLASSES)
    assert causal.reason.endswith("the current version is for CAUSAL_LM and was not compared")


def test_a_guess_has_the_entropy_of_the_labels() -> None:
    rows = [Tokens([5, 6, 7], [0, 0, IGNORE]), Tokens([5, 6], [0, 1])]
    found = guess(rows, TrainSpec(task="TOKEN_CLS"), {1})
    assert found.loss == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert (found.metric, found.score, found.token_accuracy) == ("f1", 0.0, 0.75)
