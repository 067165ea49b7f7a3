"""An adapter taken out of the base and put back: the same model, and a base that is none the wiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.batch.trainable import Share, TrainableBatch
from tests.training.joint.stand import data, make_base
from training.joint.layers import JobLayers
from training.methods import load_base
from training.run.prepare import LoadedBase, prepare_on
from training.spec import LoraSpec, TrainSpec

IDS = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))


def load(folder: Path) -> LoadedBase:
    model, tokenizer = load_base(folder, TrainSpec())
    return LoadedBase("base", "digest", model, tokenizer)


def layers(base: LoadedBase, **lora: Any) -> JobLayers:
    spec = TrainSpec(LoraSpec(**lora), steps=2)
    made = JobLayers(base.model, lambda: prepare_on(base, spec, data(0), None))
    with torch.no_grad():
        for delta in made.adapter.deltas.values():
            delta.b.normal_(0, 0.2)
    return made


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_place_it_is_the_model_that_a_pass_computes(family: str, tmp_path: Path) -> None:
    base = load(make_base(tmp_path, family))
    bare = base.model(input_ids=IDS).logits
    modules = dict(base.model.named_modules())
    one, other = layers(base, rank=3, alpha=5), layers(base, rank=2, alpha=2, method="rslora")

    assert dict(base.model.named_modules()) == modules
    torch.testing.assert_close(base.model(input_ids=IDS).logits, bare)
    batch = TrainableBatch()
    batch.attach(base.model, list(one.adapter.deltas))
    with batch.passing([Share(one.adapter, 2, 9), Share(other.adapter, 2, 9)], 9):
        together = base.model(input_ids=torch.cat([IDS, IDS])).logits
    for own, found in ((one, together[:2]), (other, together[2:])):
        with own.in_place() as model:
            torch.testing.assert_close(model(input_ids=IDS).logits, found, rtol=1e-4, atol=1e-5)
        assert (found - bare).abs().max() > 0.01


def test_what_is_trained_is_in_the_order_of_a_run_alone(tmp_path: Path) -> None:
    base = load(make_base(tmp_path))
    made = layers(base, rank=3, target_modules=("q_proj", "down_proj"))
    assert {id(each) for each in made.parameters} == {id(each) for each in made.adapter.parameters()}
    with made.in_place() as model:
        named = [parameter for _, parameter in model.named_parameters() if parameter.requires_grad]
    assert [id(each) for each in made.parameters] == [id(each) for each in named]


def test_experts_train_alone(tmp_path: Path) -> None:
    base = load(make_base(tmp_path, "mixtral"))
    modules = dict(base.model.named_modules())
    with pytest.raises(ValueError, match="is no linear layer: an adapter on it trains alone"):
        layers(base)
    assert dict(base.model.named_modules()) == modules


def test_a_spec_that_does_not_fit_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    base = load(make_base(tmp_path))
    modules = dict(base.model.named_modules())
    with pytest.raises(ValueError, match="nowhere"):
        layers(base, target_modules=("nowhere",))
    assert dict(base.model.named_modules()) == modules
