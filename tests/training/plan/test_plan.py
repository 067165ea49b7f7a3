"""The whole plan: both presets, what fits instead, and the texts' own figures."""

from __future__ import annotations

import json

import pytest

from tests.training.plan.models import ROWS, base_of
from training.base import MODEL_DIR
from training.plan.facts import RowFacts, read_base
from training.plan.plan import make_plan

GIB = 1024**3


def test_presets_side_by_side_and_as_json() -> None:
    plan = make_plan(base_of("7B"), ROWS)
    assert list(plan.options) == ["modern", "tutorial"]
    assert plan.spec("tutorial").lora.target_modules == "default"
    told = json.loads(json.dumps(plan.to_json()))
    modern = told["presets"]["modern"]
    assert modern["spec"]["learning_rate"] == plan.spec().learning_rate
    assert modern["steps"] == 375
    assert modern["memory"]["full"] == sum(part["size"] for part in modern["memory"]["parts"])
    assert told["rank_for_five_percent"] == {"all-linear": 135, "default": 643}


def test_steps_count_all_devices() -> None:
    plan = make_plan(base_of("7B"), ROWS, given={"devices": 4, "effective_batch": 32, "epochs": 1})
    option = plan.options["modern"]
    assert option.steps == 63
    assert option.chosen.batch.accumulation * option.chosen.batch.rows == 8


def test_a_run_of_so_many_steps() -> None:
    plan = make_plan(base_of("7B"), ROWS, given={"steps": 10}, rate=1600)
    option = plan.options["modern"]
    assert option.steps == 10
    assert option.duration.seconds == pytest.approx(10 * 16 * 200 / 1600)


def test_what_would_fit_is_told() -> None:
    plain = make_plan(base_of("7B"), ROWS, cuda=True, gpu_bytes=8 * GIB, given={"method": "lora"})
    said = plain.options["modern"].remedy or ""
    assert "qlora with gradient checkpointing" in said
    assert "a card of 16 GB" in said
    huge = make_plan(base_of("65B"), ROWS, cuda=True, gpu_bytes=24 * GIB)
    said = huge.options["modern"].remedy or ""
    assert "a card of 48 GB" in said
    assert "a base of at most" in said
    assert make_plan(base_of("1B"), ROWS, cuda=True, gpu_bytes=24 * GIB).options["modern"].remedy is None


def test_the_steps_of_this_machine_can_be_timed() -> None:
    rows = RowFacts(rows=16, tokens=160, longest=10, trained=80)
    plan = make_plan(read_base(MODEL_DIR), rows, measured_on=MODEL_DIR)
    assert plan.options["tutorial"].duration.source == "measured"
