"""A run that is gone on with takes the same steps, by every method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.training.methods.stand import (
    QuantizedDecoder,
    batches,
    begin,
    distance,
    logits,
    optimizer_of,
    spec_for,
    train_on,
)
from training.methods import load_trainable_state, save, trainable_state
from training.spec import Method, TrainSpec

TARGETS = ("q_proj", "up_proj")


@pytest.fixture(scope="module")
def quantizable(folder: Path) -> Path:
    return QuantizedDecoder("llama", folder / "nf4").path


def spec_of(method: str, **more: Any) -> TrainSpec:
    return spec_for(method=method, target_modules=TARGETS, bias="none", dropout=0.0, **more)


def copied(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainable_state(model).items()}


@pytest.mark.parametrize("method", get_args(Method))
def test_a_resumed_run_is_the_same_to_the_bit(
    base: Path, quantizable: Path, tmp_path: Path, method: str
) -> None:
    path = quantizable if method == "qlora" else base
    spec = spec_of(method, modules_to_save=("lm_head",))
    steps = spec.total_steps(0)
    whole = begin(path, spec)
    optimizer = optimizer_of(whole)
    half = steps // 2
    losses = train_on(whole, spec, optimizer, 1, half)
    save(whole, tmp_path / "half", base_name="tiny", spec=spec)  # a checkpoint does not disturb the run
    kept, moments = copied(whole), copy.deepcopy(optimizer.state_dict())
    losses += train_on(whole, spec, optimizer, half + 1, steps)

    resumed = begin(path, spec)
    load_trainable_state(resumed, kept)
    other = optimizer_of(resumed)
    other.load_state_dict(moments)
    assert train_on(resumed, spec, other, half + 1, steps) == losses[half:]
    wanted = trainable_state(whole)
    found = trainable_state(resumed)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for name, model in (("whole", whole), ("resumed", resumed)):
        save(model, tmp_path / name, base_name="tiny", spec=spec)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes()


@pytest.mark.parametrize("method", ["pissa", "olora", "lora-ga"])
def test_another_beginning_is_made_up_for(base: Path, method: str) -> None:
    """As on a machine where the same computation rounds otherwise: the model is the same to rounding."""
    spec = spec_of(method)
    first = begin(base, spec)
    train_on(first, spec, optimizer_of(first))
    second = begin(base, spec)
    shaken = copied(second)
    for name, value in second.named_parameters():
        if "lora_A" in name:  # another beginning: A and what was taken out of the base
            layer = second.get_submodule(name.removesuffix(".lora_A.default.weight"))
            with torch.no_grad():
                layer.initial_A += 0.01
                change = layer.scaling["default"] * layer.initial_B @ torch.full_like(value, 0.01)
                layer.get_base_layer().weight -= change
    load_trainable_state(second, shaken)
    fresh = begin(base, spec)
    load_trainable_state(fresh, shaken)
    assert distance(logits(second.eval(), "CAUSAL_LM"), logits(fresh.eval(), "CAUSAL_LM")) < 1e-5
    load_trainable_state(second, copied(first))
    assert distance(logits(second.eval(), "CAUSAL_LM"), logits(first.eval(), "CAUSAL_LM")) < 1e-5


def test_the_state_of_another_run_is_refused(base: Path) -> None:
    kept = copied(begin(base, spec_of("lora")))
    with pytest.raises(
        ValueError, match="the saved state is of another method, other modules or other ranks"
    ):
        load_trainable_state(begin(base, spec_of("lora", rank=2)), kept)
    with pytest.raises(ValueError, match="the saved state is of another method or other modules"):
        load_trainable_state(begin(base, spec_of("pissa")), kept)


def test_what_trains_is_float32_on_a_base_in_bfloat16(base: Path) -> None:
    spec = TrainSpec(spec_of("eva", modules_to_save=("lm_head",)).lora, steps=4, precision="bfloat16")
    model = begin(base, spec)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batches("CAUSAL_LM")[0]).loss.backward()
    trained = [value for value in model.parameters() if value.requires_grad]
    assert {value.dtype for value in trained} == {torch.float32}
    assert {value.dtype for value in model.parameters()} == {torch.float32, torch.bfloat16}
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in trained)
