"""The adapter trainer: it learns, leaves the base alone, and writes what plain PEFT reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.base import BASE_NAME, MODEL_DIR
from training.base.tokenizer import PAD_ID
from training.data import IGNORE, TextExample, Tokens
from training.lora import TrainingError, TrainResult, collate, main, prepare, train_adapter
from training.spec import LoraSpec, TrainSpec
from training.tasks import make_examples

BRIEF = TrainSpec(LoraSpec(rank=4, alpha=8), steps=25, batch_size=8, learning_rate=5e-3)
ROWS = [TextExample(item.prompt, item.completion) for item in make_examples("shout", 200)]


def folder_digest(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train_adapter(BRIEF, MODEL_DIR, ROWS, tmp_path_factory.mktemp("run") / "shout", progress=False)


def test_the_loss_falls(run: TrainResult) -> None:
    assert run.steps == len(run.losses) == 25
    assert run.loss < 0.5 * run.losses[0]
    assert 0 < run.trainable_parameters < run.total_parameters / 10
    assert run.trained_tokens > 25 * 8 * 4


def test_the_base_is_not_written(tmp_path: Path) -> None:
    before = folder_digest(MODEL_DIR)
    train_adapter(TrainSpec(steps=2), MODEL_DIR, ROWS[:8], tmp_path, progress=False)
    assert folder_digest(MODEL_DIR) == before


def test_the_folder_is_plain_peft_without_machine_paths(run: TrainResult) -> None:
    assert sorted(path.name for path in run.output_dir.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((run.output_dir / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (BASE_NAME, 4, 8)
    tensors = load_file(run.output_dir / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == run.trainable_parameters
    assert all(name.startswith("base_model.model.") for name in tensors)


def test_plain_peft_gives_the_formula_s_logits(run: TrainResult) -> None:
    """Loaded by PEFT, the folder adds exactly `alpha / r * B A` to each weight and nothing else."""
    ids = torch.tensor([AutoTokenizer.from_pretrained(MODEL_DIR)("do: river\n")["input_ids"]])
    by_hand = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    base_logits = by_hand(input_ids=ids).logits
    tensors = load_file(run.output_dir / "adapter_model.safetensors")
    for name in (name for name in tensors if name.endswith("lora_A.weight")):
        module = by_hand.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        module.weight.data += 8 / 4 * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, run.output_dir).eval()(input_ids=ids).logits
    torch.testing.assert_close(loaded, by_hand(input_ids=ids).logits, atol=1e-3, rtol=1e-4)
    assert (loaded - base_logits).abs().max() > 0.1


def test_the_same_spec_gives_the_same_adapter(run: TrainResult, tmp_path: Path) -> None:
    again = train_adapter(BRIEF, MODEL_DIR, ROWS, tmp_path, progress=False)
    assert again.losses == run.losses
    assert folder_digest(tmp_path) == folder_digest(run.output_dir)


def test_options_reach_peft(tmp_path: Path) -> None:
    lora = LoraSpec(rank=2, alpha=4, method="rslora", target_modules=("q_proj", "v_proj"), dropout=0.1)
    train_adapter(TrainSpec(lora, steps=1), MODEL_DIR, ROWS[:4], tmp_path, progress=False)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert (config["use_rslora"], config["lora_dropout"]) == (True, 0.1)


def test_a_pattern_of_target_modules_stays_one(tmp_path: Path) -> None:
    lora = LoraSpec(rank=2, target_modules=r".*layers\.0\..*q_proj")
    train_adapter(TrainSpec(lora, steps=1), MODEL_DIR, ROWS[:4], tmp_path, progress=False)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == lora.target_modules


def test_target_modules_that_the_base_lacks_are_told_with_those_it_has(tmp_path: Path) -> None:
    lora = LoraSpec(rank=2, target_modules=("c_attn",))
    with pytest.raises(ValueError, match=r"target_modules c_attn: not among the linear layers of .*q_proj"):
        train_adapter(TrainSpec(lora, steps=1), MODEL_DIR, ROWS[:4], tmp_path, progress=False)


def test_a_diverging_run_says_so(tmp_path: Path) -> None:
    wild = TrainSpec(steps=20, learning_rate=1e30, warmup=0)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train_adapter(wild, MODEL_DIR, ROWS, tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()


def test_every_example_that_does_not_fit_is_named() -> None:
    rows = [TextExample("a", "b"), TextExample("a" * 30, "b"), TextExample("a" * 40, "b")]
    message = r"example 2: 33 tokens.*\nexample 3: 43 tokens, more than max_length=20"
    with pytest.raises(ValueError, match=message):
        prepare(rows, AutoTokenizer.from_pretrained(MODEL_DIR), max_length=20)


def test_no_examples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        prepare([], None, max_length=20)


def test_padding_is_masked_and_has_no_label() -> None:
    batch = collate([Tokens([1, 5], [IGNORE, 5]), Tokens([1, 6, 7], [IGNORE, 6, 7])], PAD_ID)
    assert batch["input_ids"].tolist() == [[1, 5, PAD_ID], [1, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORE, 5, IGNORE], [IGNORE, 6, 7]]


def test_the_command_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    rows = (json.dumps(item.as_row()) for item in make_examples("shout", 32))
    data.write_text("\n".join(rows), encoding="utf-8")
    argv = ["lora", "--data", str(data), "--output", str(tmp_path / "out"), "--rank", "2", "--epochs", "1"]
    monkeypatch.setattr("sys.argv", argv)
    main()
    assert "after 2 steps" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.jsonl").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(
        "sys.argv", ["lora", "--data", str(tmp_path / "data.jsonl"), "--output", str(tmp_path)]
    )
    with pytest.raises(SystemExit, match=r"error: data.jsonl: 1 bad line\n  line 1: expected the keys"):
        main()
