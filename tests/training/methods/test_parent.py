"""Going on from an adapter: it begins as that one, all of it trains, and what can't is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.training.methods.stand import (
    Decoder,
    Trained,
    begin,
    distance,
    logits,
    optimizer_of,
    spec_for,
    train,
    train_on,
    with_peft,
)
from training.methods import save
from training.spec import Method

TARGETS = ("q_proj", "v_proj")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return Decoder("qwen2", folder / "qwen2").path


@pytest.fixture(scope="module")
def plain(base: Path, folder: Path) -> Trained:
    """A LoRA with biases and a whole module."""
    options: dict[str, Any] = {
        "bias": "lora_only",
        "modules_to_save": ("lm_head",),
        "rank_pattern": {"v_proj": 2},
    }
    return train(base, folder / "plain", spec_for(target_modules=TARGETS, **options))


@pytest.mark.parametrize("method", [method for method in get_args(Method) if method != "qlora"])
def test_it_begins_where_the_other_ended(base: Path, tmp_path: Path, method: str) -> None:
    first = train(base, tmp_path / "first", spec_for(method=method, target_modules=TARGETS))
    spec = spec_for(method="lora", rank=8, alpha=16.0)  # the defaults: nothing is asked for
    model = begin(base, spec, first.folder, seed=5)
    assert distance(logits(model.eval(), "CAUSAL_LM"), logits(first.model, "CAUSAL_LM")) < 1e-5
    train_on(model, spec, optimizer_of(model))
    save(model, tmp_path / "second", base_name="tiny", spec=spec)
    second = Trained(model, tmp_path / "second", spec)
    assert distance(logits(model, "CAUSAL_LM"), logits(first.model, "CAUSAL_LM")) > 0.01
    assert distance(logits(with_peft(base, second), "CAUSAL_LM"), logits(model, "CAUSAL_LM")) < 1e-5
    config = json.loads((second.folder / "adapter_config.json").read_text())
    before = json.loads((first.folder / "adapter_config.json").read_text())
    assert {name: value for name, value in config.items() if before[name] != value} == {}


def test_biases_whole_modules_and_ranks_go_on(base: Path, plain: Trained) -> None:
    model = begin(base, spec_for(rank=8, alpha=16.0, dropout=0.1), plain.folder)
    assert distance(logits(model.eval(), "CAUSAL_LM"), logits(plain.model, "CAUSAL_LM")) == 0
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {name for name, value in plain.model.named_parameters() if value.requires_grad}
    assert model.peft_config["default"].lora_dropout == 0.1


def changed(source: Path, target: Path, **fields: Any) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "adapter_config.json").read_text()) | fields
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 16}, "the adapter to go on from has its own rank: leave rank out"),
        ({"alpha": 3.0}, "has its own alpha: leave alpha out"),
        ({"target_modules": ("o_proj",)}, "has its own target_modules: leave target_modules out"),
        ({"layers": (0,)}, "has its own layers: leave layers out"),
        ({"bias": "all"}, "has its own bias: leave bias out"),
        ({"rank_pattern": {"q_proj": 2}}, "has its own rank_pattern: leave rank_pattern out"),
        ({"method": "dora"}, "the adapter to go on from is lora, not dora: say lora"),
        ({"method": "adalora"}, "the adapter to go on from is lora, not adalora: say lora"),
        ({"method": "pissa"}, "pissa is a way to begin; to go on from an adapter say lora"),
        ({"method": "eva"}, "eva is a way to begin; to go on from an adapter say lora"),
    ],
)
def test_another_shape_is_refused(base: Path, plain: Trained, lora: dict[str, Any], message: str) -> None:
    asked = spec_for(**{"rank": 8, "alpha": 16.0, **lora})
    with pytest.raises(ValueError, match=message):
        begin(base, asked, plain.folder)


def test_what_it_has_may_be_said(base: Path, plain: Trained) -> None:
    options: dict[str, Any] = {
        "bias": "lora_only",
        "modules_to_save": ("lm_head",),
        "rank_pattern": {"v_proj": 2},
    }
    begin(base, spec_for(rank=4, alpha=8.0, target_modules=TARGETS, **options), plain.folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: {"peft_type": "LOHA", "alpha": 8, "rank_dropout": 0.0},
            "of the kind LOHA can't be trained",
        ),
        (
            lambda folder: {"init_lora_weights": "pissa"},
            "saved with init_lora_weights 'pissa' changes the base",
        ),
        (lambda folder: {"target_modules": "(.*)*x"}, r"target_modules '.*' is too complex a pattern"),
        (lambda folder: {"alora_invocation_tokens": [1]}, "with alora_invocation_tokens can't be trained on"),
        (
            lambda folder: {"task_type": "SEQ_CLS"},
            "the adapter to go on from is for SEQ_CLS, not for CAUSAL_LM",
        ),
        (
            lambda folder: {"target_modules": ["q_proj"]},
            "does not fit this base: base_model.model.model.layers",
        ),
        (lambda folder: {"target_modules": ["q_proj", "v_proj", "o_proj"]}, "does not fit this base"),
    ],
)
def test_what_can_not_be_trained_on_is_refused(
    base: Path, plain: Trained, tmp_path: Path, make: Callable[[Path], dict[str, Any]], message: str
) -> None:
    parent = changed(plain.folder, tmp_path / "parent", **make(tmp_path))
    with pytest.raises(ValueError, match=message):
        begin(base, spec_for(rank=8, alpha=16.0), parent)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_folder_without_both_files_is_refused(
    base: Path, plain: Trained, tmp_path: Path, file: str
) -> None:
    parent = changed(plain.folder, tmp_path / "parent")
    (parent / file).rename(parent / "adapter_model.bin")
    with pytest.raises(ValueError, match=f"parent is no adapter to go on from: it has no {file}"):
        begin(base, spec_for(rank=8, alpha=16.0), parent)


@pytest.mark.parametrize("other", ["gpt2", "qwen3"])
def test_another_base_is_refused(plain: Trained, tmp_path: Path, other: str) -> None:
    """One with other modules, and one with other shapes."""
    path = Decoder(other, tmp_path).path
    with pytest.raises(ValueError, match=r"^the adapter to go on from does not fit this base: [^\n]+$"):
        begin(path, spec_for(rank=8, alpha=16.0), plain.folder)
