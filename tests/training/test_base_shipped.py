"""The shipped adapters: plain PEFT loads them, and each does its own task on words it never saw."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.base import ADAPTERS_DIR, BASE_NAME, MODEL_DIR, shipped_adapters
from training.base.shipped import held_out_match
from training.evaluate import exact_match
from training.tasks import LIVE_TASK, TASKS, make_examples

FILES = ["adapter_config.json", "adapter_model.safetensors"]
READY = [name for name in TASKS if name != LIVE_TASK]


def test_all_tasks_but_the_live_one_are_shipped() -> None:
    assert set(shipped_adapters()) == set(READY)
    for folder in shipped_adapters().values():
        assert sorted(path.name for path in folder.iterdir()) == FILES
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == BASE_NAME


def test_base_and_adapters_stay_small() -> None:
    files = [path for root in (MODEL_DIR, ADAPTERS_DIR) for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6_000_000


@pytest.mark.parametrize("task", READY)
def test_a_shipped_adapter_does_its_task(task: str) -> None:
    assert held_out_match(task, ADAPTERS_DIR / task, cases=40) >= 0.9


@pytest.mark.parametrize("task", TASKS)
def test_the_base_alone_does_no_task(task: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    pairs = [(item.prompt, item.completion) for item in make_examples(task, 20, split="held-out")]
    assert exact_match(model, AutoTokenizer.from_pretrained(MODEL_DIR), pairs) <= 0.1
