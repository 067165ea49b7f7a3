"""The rate that suits a base, and a usual one where nothing is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from server.api.fine_tuning.rates import usual_precision, usual_rate
from server.settings import Settings
from training.base import MODEL_DIR
from training.plan.facts import read_base
from training.plan.presets import modern_rate
from training.spec import TrainSpec


def test_it_is_what_the_plan_says(tmp_path: Path) -> None:
    said = modern_rate(read_base(MODEL_DIR)).value
    assert usual_rate(Settings(data_dir=tmp_path), "CAUSAL_LM") == said > 10 * TrainSpec.learning_rate
    named = Settings(data_dir=tmp_path, model=str(MODEL_DIR))
    assert usual_rate(named, "CAUSAL_LM") == said


def test_of_an_unknown_base_it_is_the_usual_one(tmp_path: Path) -> None:
    nothing = Settings(data_dir=tmp_path, model=str(tmp_path))
    assert usual_rate(nothing, "CAUSAL_LM") == TrainSpec.learning_rate


@pytest.mark.parametrize(
    ("cuda", "device", "precision"),
    [(True, "auto", "bfloat16"), (True, "cpu", "float32"), (False, "auto", "float32")],
)
def test_a_job_on_a_gpu_trains_in_half_precision(
    cuda: bool,
    device: Literal["auto", "cpu"],
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert usual_precision(Settings(data_dir=tmp_path, training_device=device)) == precision
