"""The mixin: no pickle on the way, and only the model draws random numbers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.run.stand import SPEC, data, in_parts, make_base
from training.methods import load_base, wrap
from training.run import Order, train
from training.run.exact import precision_of
from training.run.prepare import prepare
from training.run.trainer import make_trainer


@pytest.fixture(scope="module", autouse=True)
def _no_picture() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.run.course.draw", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def test_no_pickle_is_written_or_read(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle")

    for module, name in ((torch, "save"), (torch, "load"), (pickle, "dump"), (pickle, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert in_parts(base, tmp_path / "run", SPEC, data(), [2, 2]).complete


def test_each_step_sees_its_rows(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = prepare(SPEC, base, data(), None)
    trainer = make_trainer(SPEC, work.model, work.tokenizer, work.rows, work.steps, tmp_path)
    compute = trainer.compute_loss

    def watched(model: Any, inputs: Any, **options: Any) -> Any:
        rows.append([row[row != 0].tolist() for row in inputs["input_ids"]])
        return compute(model, inputs, **options)

    rows: list[list[list[int]]] = []
    monkeypatch.setattr(trainer, "compute_loss", watched)
    trainer.run(None)
    order = Order(len(work.rows), SPEC.batch_size, SPEC.seed, SPEC.accumulation)
    wanted = [
        [work.rows[index].ids for index in one] for step in range(work.steps) for one in order.step(step)
    ]
    assert rows == wanted


def test_without_dropout_nothing_is_drawn(base: Path, tmp_path: Path) -> None:
    """So that whoever has other random numbers, such as runs that train together, can give the same."""
    spec = replace(SPEC, lora=replace(SPEC.lora, dropout=0.0))
    torch.manual_seed(spec.seed)
    model, tokenizer = load_base(base, spec)
    rows = prepare(spec, base, data(), None).rows
    model = wrap(model, spec, [], 3)
    trainer = make_trainer(spec, model, tokenizer, rows, 3, tmp_path)
    before = torch.random.get_rng_state()
    trainer.run(None)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_bfloat16_base_trains_in_float32_under_autocast(base: Path, tmp_path: Path) -> None:
    spec = replace(SPEC, precision="bfloat16")
    with precision_of(spec, torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
    with precision_of(SPEC, torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    work = prepare(spec, base, data(), None)
    kinds = {value.dtype for value in work.model.parameters() if value.requires_grad}
    assert kinds == {torch.float32}
    assert work.model.base_model.model.lm_head.weight.dtype == torch.bfloat16
    whole = train(SPEC, base, data(), tmp_path / "whole")
    assert train(spec, base, data(), tmp_path / "half").losses == pytest.approx(whole.losses, rel=0.05)
