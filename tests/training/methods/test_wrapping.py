"""An adapter on a base: it begins as the base, with the same bytes each time; checkpoints of activations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.training.methods.stand import (
    LABELS,
    QuantizedDecoder,
    Seq2Seq,
    batches,
    begin,
    distance,
    logits,
    optimizer_of,
    spec_for,
    train_on,
)
from training.methods import load_base, trainable_state, wrap
from training.spec import LoraSpec, Method, TrainSpec

TARGETS = ("q_proj", "v_proj")


@pytest.mark.parametrize("method", [method for method in get_args(Method) if method != "qlora"])
def test_it_begins_as_the_base(base: Path, method: str) -> None:
    spec = spec_for(method=method, target_modules=TARGETS)
    model = begin(base, spec).eval()
    bare, _ = load_base(base, spec)
    assert distance(logits(model, "CAUSAL_LM"), logits(bare, "CAUSAL_LM")) < 1e-5
    again = trainable_state(begin(base, spec))
    assert all(torch.equal(value, again[name]) for name, value in trainable_state(model).items())


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_gradient_checkpointing_changes_nothing_but_memory(base: Path, task: Any) -> None:
    spec = spec_for(task, target_modules=TARGETS)
    sparing = replace(spec, gradient_checkpointing=True)
    plain, model = begin(base, spec), begin(base, sparing)
    assert train_on(model, sparing, optimizer_of(model)) == train_on(plain, spec, optimizer_of(plain))
    kept = held(begin(base, spec), task), held(begin(base, sparing), task)
    assert kept[1] < kept[0] / 2


def held(model: Any, task: Any) -> int:
    """Numbers that a forward pass keeps for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            sizes.append(tensor.numel())
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**batches(task)[0])
    return sum(sizes)


def test_gradient_checkpointing_with_nf4_and_with_two_stacks(folder: Path) -> None:
    for path, spec in (
        (QuantizedDecoder("llama", folder / "nf4").path, spec_for(method="qlora", target_modules=TARGETS)),
        (Seq2Seq("t5", folder / "t5").path, spec_for("SEQ_2_SEQ_LM", target_modules=("q", "wo"))),
    ):
        model = begin(path, replace(spec, gradient_checkpointing=True))
        plain = begin(path, spec)
        found = []
        for each in (model, plain):
            torch.manual_seed(7)  # T5 has dropout
            found.append(train_on(each, spec, optimizer_of(each)))
        assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_methods_that_look_at_the_data_need_some(base: Path) -> None:
    for method in ("lora-ga", "eva"):
        spec = spec_for(method=method)
        model, _ = load_base(base, spec)
        with pytest.raises(ValueError, match=f"{method} looks at the data first, and there is none"):
            wrap(model, spec, (), 4)


@pytest.mark.parametrize("method", ["lora-ga", "pissa", "olora"])
def test_beginnings_from_the_base_s_weights_need_them_whole(folder: Path, method: Any) -> None:
    path = QuantizedDecoder("llama", folder / f"quantised-{method}").path
    model, _ = load_base(path, spec_for(method="qlora"))
    with pytest.raises(
        ValueError, match=f"{method} begins from the base.s own weights, and these are quantised"
    ):
        wrap(model, spec_for(method=method), batches("CAUSAL_LM"), 4)


def test_too_few_steps_for_adalora_are_told_before_anything_is_wrapped(base: Path) -> None:
    spec = TrainSpec(LoraSpec(method="adalora"), steps=5)
    model, _ = load_base(base, spec)
    with pytest.raises(ValueError, match="adalora needs at least 10 steps"):
        wrap(model, spec, (), 5)


def test_the_head_and_the_adapter_are_all_that_trains(base: Path) -> None:
    spec = spec_for("TOKEN_CLS", target_modules=TARGETS)
    model, _ = load_base(base, spec, LABELS)
    wrapped = wrap(model, spec, (), 4)
    trained = [name for name, value in wrapped.named_parameters() if value.requires_grad]
    assert trained
    assert all("lora_" in name or "score.modules_to_save" in name for name in trained)
