"""EVA begins with the main directions of the inputs, as another algorithm finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.methods.stand import Seq2Seq, batches, begin, spec_for
from training.methods import load_base, wrap
from training.methods.calibration import accumulate_gradients


def inputs_of(model: Any, name: str, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """`(tokens, width)`: what a module of the base is given, without padding."""
    found: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, given, output: found.append(given[0])
    )
    with torch.no_grad():
        for batch in rows:
            model(**batch)
    hook.remove()
    return torch.cat([one[batch["attention_mask"].bool()] for one, batch in zip(found, rows, strict=True)])


def test_eva_begins_with_the_main_directions_of_the_inputs(base: Path) -> None:
    name = "model.layers.1.mlp.down_proj"
    spec = spec_for(method="eva", rank=3, target_modules=("1.mlp.down_proj",))
    rows = batches("CAUSAL_LM", count=1)
    model, _ = load_base(base, spec)
    given = inputs_of(model, name, rows)
    wrapped = wrap(model, spec, rows, 4)
    found = wrapped.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.detach()
    centred = given - given.mean(0)
    wanted = torch.linalg.svd(centred, full_matrices=False).Vh[: len(found)]
    # Each direction may point either way.
    assert torch.allclose((found @ wanted.T).abs(), torch.eye(len(found)), atol=1e-3)


def test_ranks_go_where_they_explain_most(base: Path) -> None:
    model = begin(base, spec_for(method="eva", rank=4, target_modules=("q_proj", "down_proj")))
    config = model.peft_config["default"]
    ranks = [
        layer.r["default"] for layer in model.modules() if hasattr(layer, "lora_A") and "default" in layer.r
    ]
    assert sum(ranks) <= 4 * 6
    assert len(set(ranks)) > 1
    assert config.rank_pattern


def test_more_ranks_than_a_batch_can_show_are_refused(base: Path) -> None:
    """PEFT would wait for them for ever."""
    message = (
        "eva: rank 43 is more than a batch of 41 tokens and layers with 48 inputs can show: take a larger"
    )
    with pytest.raises(ValueError, match=message):
        begin(base, spec_for(method="eva", rank=43, target_modules=("q_proj",)))
    begin(base, spec_for(method="eva", rank=41, target_modules=("1.self_attn.q_proj",)))


def test_eva_tells_sources_from_targets(folder: Path) -> None:
    """Both are padded, and here both are of one width."""
    spec = spec_for(
        "SEQ_2_SEQ_LM", method="eva", rank=2, target_modules=("decoder.block.1.layer.2.DenseReluDense.wi",)
    )
    path = Seq2Seq("t5", folder / "t5").path
    rows = batches("SEQ_2_SEQ_LM", count=1)
    rows[0]["labels"] = rows[0]["input_ids"].clone().masked_fill(rows[0]["attention_mask"] == 0, -100)
    rows[0]["labels"][1, 4:] = -100
    model, _ = load_base(path, spec)
    name = "decoder.block.1.layer.2.DenseReluDense.wi"
    found: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, given, output: found.append(given[0])
    )
    with torch.no_grad():
        model(**rows[0])
    hook.remove()
    given = found[0][rows[0]["labels"] != -100]
    wrapped = wrap(model, spec, rows, 4)
    directions = wrapped.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.detach()
    wanted = torch.linalg.svd(given - given.mean(0), full_matrices=False).Vh[:2]
    assert torch.allclose((directions @ wanted.T).abs(), torch.eye(2), atol=1e-3)


def test_gradients_add_up(base: Path) -> None:
    model, _ = load_base(base, spec_for())
    weight = model.lm_head.weight.requires_grad_(True)
    rows = batches("CAUSAL_LM", count=2)
    accumulate_gradients(model, rows)
    total = weight.grad.clone()
    wanted = torch.zeros_like(total)
    for batch in rows:
        weight.grad = None
        model(**batch).loss.backward()
        wanted += weight.grad
    torch.testing.assert_close(total, wanted)
