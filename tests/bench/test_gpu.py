"""The GPU's benchmark as far as it can be seen without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench.__main__ import main
from bench.gpu import strip
from tests.kit import Families


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert main(["gpu"]) == 2
    said = capsys.readouterr()
    assert said.err == "python -m bench gpu: torch sees no GPU here\n"
    assert not said.out


def test_a_stripped_model_computes_the_same_with_plain_layers(families: Families) -> None:
    family = families("llama")
    names = list(family.model.linears)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        expected = family.stock(input_ids=tokens).logits
        stripped = type(family)("llama", family.folder)
        served = stripped.model
        served.model.set_attn_implementation("eager")
        strip(SimpleNamespace(model=served))
        found = served.model(input_ids=tokens, use_cache=False).logits

    assert all(type(served.model.get_submodule(name)) is nn.Linear for name in names)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
