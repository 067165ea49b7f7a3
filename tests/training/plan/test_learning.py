"""The shipped base learns with what the plan chooses for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from training.base import MODEL_DIR
from training.data import read_jsonl
from training.plan.facts import read_base, read_rows
from training.plan.plan import make_plan
from training.run.result import TrainingData
from training.run.run import train
from training.tasks import make_examples


def test_the_modern_preset_on_the_shipped_base(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(item.as_row()) + "\n" for item in make_examples("spell", 400)))
    rows = read_rows(file, MODEL_DIR)
    plan = make_plan(read_base(MODEL_DIR), rows)
    spec = replace(plan.spec(), steps=40, evaluate_every=1000)
    result = train(spec, MODEL_DIR, TrainingData(read_jsonl(file)), tmp_path / "out")
    assert result.losses[0] > 2
    assert result.loss < 0.3
    # What was foretold is what was trained.
    option = plan.options["modern"]
    assert result.trainable_parameters == option.trainable.trainable
    assert result.total_parameters == option.trainable.total
    assert option.steps == spec.epochs * -(-400 // spec.effective_batch)
