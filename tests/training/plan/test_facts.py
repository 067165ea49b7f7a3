"""A base's shape from its config alone, and the numbers of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.tiny import FAMILIES, make_model
from training.base import MODEL_DIR
from training.plan.facts import facts_of, read_base, read_rows


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_config_alone_gives_the_shape_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((MODEL_DIR / "config.json").read_bytes())
    base = read_base(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    assert base.parameters == sum(tensor.numel() for tensor in loaded.parameters())
    assert (base.hidden, base.layers, base.heads, base.key_width) == (128, 4, 4, 64)
    assert base.head == "lm_head"
    assert base.usual == ("q_proj", "v_proj")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_family(family: str) -> None:
    base = facts_of(make_model(family), family)
    assert base.model_type == FAMILIES[family][0]
    assert base.hidden == 48
    assert base.vocabulary == 96
    assert 0 < base.in_linears < base.parameters
    assert 0 < base.active <= base.parameters
    assert base.usual


def test_of_experts_a_token_takes_a_few() -> None:
    base = facts_of(make_model("mixtral"), "mixtral")
    experts = sum(size for name, size in base.sizes.items() if "experts" in name)
    table = base.sizes["model.embed_tokens.weight"]
    assert base.active == base.parameters - table - experts // 2


def test_no_model_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no model") as refused:
        read_base(tmp_path / "none")
    assert "\n" not in str(refused.value)


def test_a_base_that_can_not_do_the_task() -> None:
    with pytest.raises(ValueError, match="can't be trained for SEQ_2_SEQ_LM"):
        read_base(MODEL_DIR, "SEQ_2_SEQ_LM")


def test_the_numbers_of_a_file(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "a.jsonl", [{"prompt": "ab", "completion": "cde"}, {"prompt": "a", "completion": "b"}]
    )
    rows = read_rows(file, MODEL_DIR)
    # A byte each, one token before and one after; the completion and the end are learned.
    assert (rows.rows, rows.longest, rows.trained, rows.skipped) == (2, 7, 6, 0)
    assert rows.tokens == 11
    assert rows.mean == 5.5
    assert (rows.task, rows.objective) == ("CAUSAL_LM", "supervised")


def test_a_file_of_preferences_has_both_answers(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", [{"prompt": "ab", "chosen": "c", "rejected": "dd"}])
    rows = read_rows(file, MODEL_DIR)
    assert (rows.rows, rows.objective, rows.tokens) == (1, "dpo", 11)


def test_a_file_of_classes(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", [{"text": "ab", "label": "x"}, {"text": "c", "label": "y"}])
    rows = read_rows(file, MODEL_DIR)
    assert (rows.task, rows.classes, rows.trained) == ("SEQ_CLS", 2, 2)
    base = read_base(MODEL_DIR, rows.task, rows.classes)
    assert base.vocabulary == 0
    assert base.sizes["score.weight"] == 2 * 128
