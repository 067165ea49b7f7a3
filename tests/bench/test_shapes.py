"""Models and adapters made from nothing are what the server takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.batch.survey import survey
from adapters.checkpoint.reader import read_adapter
from adapters.limits import AdapterLimits
from bench import shapes

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def test_base_and_adapter_fit_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", ("llama", TINY))
    base = shapes.make_base("tiny", tmp_path / "base")
    folder = shapes.make_adapter(base, tmp_path / "adapter", 4, 0)

    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(base).decode([5, 6]).replace(" ", "") == "t5t6"
    spec = survey(model).describe(model, name="base", digest="d")
    weights = read_adapter(
        (folder / "adapter_config.json").read_bytes(),
        folder / "adapter_model.safetensors",
        spec,
        AdapterLimits(),
    )
    assert weights.deltas.keys() == spec.linears.keys() - {"lm_head"}
    assert {delta.rank for delta in weights.deltas.values()} == {4}


def test_what_is_there_is_not_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", ("llama", TINY))
    base = shapes.make_base("tiny", tmp_path / "base")
    folder = shapes.make_adapter(base, tmp_path / "adapter", 4, 0)
    (base / "model.safetensors").unlink()
    shapes.make_base("tiny", base)
    assert not (base / "model.safetensors").exists()
    shutil.rmtree(base)
    assert shapes.make_adapter(base, folder, 4, 0) == folder


def test_copies_differ_in_content_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", ("llama", TINY))
    base = shapes.make_base("tiny", tmp_path / "base")
    adapter = shapes.make_adapter(base, tmp_path / "adapter", 4, 0)
    files = [f / "adapter_model.safetensors" for f in shapes.make_copies(adapter, tmp_path / "copies", 5)]

    assert len({file.read_bytes() for file in files}) == 5
    assert {file.stat().st_size for file in files} == {(adapter / "adapter_model.safetensors").stat().st_size}
    first, last = load_file(files[0]), load_file(files[-1])
    assert sum(int((first[name] != last[name]).sum()) for name in first) == 1
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_the_cost_of_a_token_is_that_of_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", ("llama", TINY))
    base = shapes.make_base("tiny", tmp_path / "base")
    adapter = shapes.make_adapter(base, tmp_path / "adapter", 4, 0)
    model = AutoModelForCausalLM.from_pretrained(base)
    matrices = [p for p in model.parameters() if p.dim() == 2]  # the tied head once, as the embedding
    found = shapes.cost("tiny")

    assert found.weights == sum(matrix.numel() for matrix in matrices)
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert 4 * found.lora == sum(tensor.numel() for tensor in tensors.values())
    assert found.kv == 2 * 2 * 1 * 8
    assert found.attention == 2 * 2 * 2 * 8
