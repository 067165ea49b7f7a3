"""Which specs can share a pass."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from training.joint import can_join
from training.joint.admission import shares_base
from training.spec import LoraSpec, TrainSpec


@pytest.mark.parametrize(
    "spec",
    [
        TrainSpec(),
        TrainSpec(LoraSpec(method="rslora", rank=3, dropout=0.1, layers=(0,), rank_pattern={"q_proj": 2})),
        TrainSpec(optimizer="sgd", schedule="linear", accumulation=3, precision="bfloat16"),
        TrainSpec(gradient_checkpointing=True),
    ],
)
def test_what_trains_together(spec: TrainSpec) -> None:
    assert can_join(spec) is None


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        *(
            (TrainSpec(LoraSpec(method=method)), method)
            for method in ("dora", "qlora", "adalora", "pissa", "eva")
        ),
        (TrainSpec(task="SEQ_CLS"), "SEQ_CLS"),
        (TrainSpec(objective="dpo"), "dpo"),
        (TrainSpec(LoraSpec(bias="all")), "bias all"),
        (TrainSpec(LoraSpec(modules_to_save=("lm_head",))), "lm_head"),
        (TrainSpec(LoraSpec(dropout=0.1), gradient_checkpointing=True), "gradient_checkpointing"),
    ],
)
def test_what_trains_alone_says_why(spec: TrainSpec, named: str) -> None:
    assert named in str(can_join(spec))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"learning_rate": 1.0, "seed": 4, "batch_size": 1}, True),
        ({"precision": "bfloat16"}, False),
        ({"device": "cpu"}, False),
        ({"gradient_checkpointing": True}, False),
    ],
)
def test_one_copy_of_the_base_serves_equal_precision(change: dict[str, Any], same: bool) -> None:
    assert (shares_base(TrainSpec()) == shares_base(TrainSpec(**change))) is same


def test_asking_is_cheap() -> None:
    code = "import sys, training.joint; print([name for name in ('torch', 'peft') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
