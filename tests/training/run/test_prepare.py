"""From what a run was asked to all that it needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.run.stand import SPEC, data, make_base
from training.base import BASE_NAME, MODEL_DIR
from training.data import TextExample
from training.run import TrainingData, train
from training.run.prepare import base_name, prepare
from training.spec import TrainSpec


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def test_the_shipped_base_has_one_name(tmp_path: Path) -> None:
    assert base_name(MODEL_DIR) == base_name(str(MODEL_DIR)) == BASE_NAME
    assert base_name("some/base") == "some/base"


def test_what_is_left_out_is_named_and_counted(base: Path) -> None:
    long = [TextExample("a" * 40, "b") for _ in range(5)]
    work = prepare(replace(SPEC, max_length=30), base, TrainingData([*data().train, *long], long[:1]), None)
    assert len(work.rows) == 10
    assert work.skipped.startswith("5 of 15 training rows are left out (row 11: ")
    assert work.skipped.count("row 1") == 4  # three of them, and the one of the validation data
    assert "; and more); 1 of 1 validation rows are left out (row 1: " in work.skipped


def test_steps_are_those_of_the_rows_that_train(base: Path) -> None:
    spec = TrainSpec(SPEC.lora, epochs=3, batch_size=2, accumulation=2)
    assert prepare(spec, base, data(), None).steps == 9


def test_an_adapter_to_go_on_from_is_in_the_lineage(base: Path, tmp_path: Path) -> None:
    given = TrainingData(data().train, files=(("train.jsonl", "a" * 64),))
    parent = train(replace(SPEC, steps=2), base, given, tmp_path / "first").folder
    child = train(replace(SPEC, steps=2), base, given, tmp_path / "second", parent=parent)
    lineage = json.loads((child.folder / "lineage.json").read_text())
    assert lineage["parent"] == "first"
    assert len(lineage["parent_digest"]) == 64
    assert lineage["data"] == [{"name": "train.jsonl", "sha256": "a" * 64}]


def test_labels_are_in_the_order_of_the_parent_s_head(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "SEQ_CLS")
    spec = replace(SPEC, task="SEQ_CLS", steps=1)
    parent = train(spec, base, data("SEQ_CLS"), tmp_path / "first").folder
    assert json.loads((parent / "labels.json").read_text()) == ["LOC", "O", "PER"]
    (parent / "labels.json").write_text(json.dumps(["PER", "O", "LOC"]))
    work = prepare(spec, base, data("SEQ_CLS"), parent)
    assert [row.labels for row in work.rows[:3]] == [[1], [0], [2]]  # O, PER, LOC
