"""What is saved: standard fields, the same bytes each time, and never what the base was changed by."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from adapters.checkpoint.labels import stored_labels
from tests.training.methods.stand import (
    LABELS,
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
from training.methods.initial import converted
from training.methods.loading import load_base

CHANGING = ["lora-ga", "pissa", "olora"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Decoder("qwen2", tmp_path_factory.mktemp("saving")).path


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("method", CHANGING)
def test_saved_as_it_trains_it_would_be_wrong(base: Path, tmp_path: Path, method: str) -> None:
    """PEFT's plain save of such a model, loaded as the ordinary LoRA that it looks like."""
    spec = spec_for(method=method)
    trained = train(base, tmp_path / "right", spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained.model.save_pretrained(str(tmp_path / "naive"), save_embedding_layers=False)
    config = config_of(tmp_path / "naive") | {"init_lora_weights": True}
    (tmp_path / "naive" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    naive = with_peft(base, Trained(None, tmp_path / "naive", spec))
    wanted = logits(trained.model, "CAUSAL_LM")
    assert distance(logits(naive, "CAUSAL_LM"), wanted) > 0.1
    assert distance(logits(with_peft(base, trained), "CAUSAL_LM"), wanted) < 1e-5


@pytest.mark.parametrize("method", CHANGING)
def test_the_conversion_is_peft_s_own(base: Path, tmp_path: Path, method: str) -> None:
    spec = spec_for(method=method, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3.0})
    model = begin(base, spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.peft_config["default"].init_lora_weights = True  # as PEFT's instructions say
        model.save_pretrained(str(tmp_path / "initial"), save_embedding_layers=False)
        train_on(model, spec, optimizer_of(model))
        save(model, tmp_path / "ours", base_name="tiny", spec=spec)
        model.save_pretrained(
            str(tmp_path / "peft"), path_initial_model_for_weight_conversion=str(tmp_path / "initial")
        )
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    found, wanted = config_of(tmp_path / "ours"), config_of(tmp_path / "peft")
    for field in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights", "use_rslora"):
        assert found[field] == wanted[field], field


def test_biases_and_whole_modules_are_kept_by_the_conversion(base: Path, tmp_path: Path) -> None:
    """PEFT's own drops both."""
    spec = spec_for(method="pissa", bias="lora_only", modules_to_save=("lm_head",))
    trained = train(base, tmp_path / "adapter", spec)
    names = load_file(trained.folder / "adapter_model.safetensors").keys()
    assert any(name.endswith(".bias") for name in names)
    assert "base_model.model.lm_head.weight" in names
    loaded = with_peft(base, trained)
    assert distance(logits(loaded, "CAUSAL_LM"), logits(trained.model, "CAUSAL_LM")) < 1e-5


def test_fields_of_the_beginning_are_gone(base: Path, tmp_path: Path) -> None:
    for method in ("lora-ga", "eva"):
        spec = spec_for(method=method, target_modules=("q_proj", "v_proj"))
        train(base, tmp_path / method, spec)
        config = config_of(tmp_path / method)
        assert (config["init_lora_weights"], config["inference_mode"]) == (True, True)
        assert config["lora_ga_config"] is None
        assert config["eva_config"] is None
        assert config["base_model_name_or_path"] == "tiny"
    assert sorted(path.name for path in (tmp_path / "eva").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_labels_lie_beside_a_head(base: Path, tmp_path: Path) -> None:
    spec = spec_for("SEQ_CLS", target_modules=("q_proj",))
    trained = train(base, tmp_path / "adapter", spec)
    assert stored_labels(trained.folder) == LABELS
    head = load_file(trained.folder / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert head.shape[0] == len(LABELS)


def test_only_factors_of_adapted_modules_are_converted(base: Path) -> None:
    model = begin(base, spec_for(method="pissa", target_modules=("q_proj",)))
    other = {"base_model.model.lm_head.weight": torch.ones(2, 2)}
    assert converted(model, other) == other


def test_saving_twice_and_in_another_process_order_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    spec = spec_for(target_modules=("v_proj", "q_proj", "down_proj"))
    model = begin(base, spec)
    for name in ("one", "two"):
        save(model, tmp_path / name, base_name="tiny", spec=spec)
        model.peft_config["default"].target_modules = {"down_proj", "q_proj", "v_proj"}
    config = config_of(tmp_path / "one")
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_base_itself_is_never_written(base: Path, tmp_path: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    spec = spec_for(method="olora", target_modules=("q_proj",))
    train(base, tmp_path / "adapter", spec)
    assert (base / "model.safetensors").read_bytes() == before
    model, _ = load_base(base, spec)
    assert isinstance(with_peft(base, Trained(None, tmp_path / "adapter", spec)), PeftModel)
    assert not any(value.requires_grad for value in model.parameters())
