"""What follows from the base's weights is computed once; damaged files and other bases do not count."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.checkpoint.derived import DERIVED_FILE, Derived
from adapters.errors import InvalidAdapter

MADE = {"a": torch.arange(6.0).view(2, 3), "same": torch.tensor(True)}


def saved(folder: Path) -> None:
    derived = Derived(lambda name: torch.ones(2))
    for name, tensor in MADE.items():
        assert torch.equal(derived.get(name, partial(MADE.__getitem__, name)), tensor)
    assert derived.changed
    derived.save(folder, "base")


def never() -> Tensor:
    raise AssertionError("it is known")


def test_kept_for_its_base(tmp_path: Path) -> None:
    saved(tmp_path)
    again = Derived.load(tmp_path, "base", None)
    for name, tensor in MADE.items():
        assert torch.equal(again.get(name, never), tensor)
    assert not again.changed
    assert [path.name for path in tmp_path.iterdir()] == [DERIVED_FILE]


def test_computed_again_for_another_base(tmp_path: Path) -> None:
    saved(tmp_path)
    other = Derived.load(tmp_path, "other", None)
    assert torch.equal(other.get("a", lambda: torch.ones(1)), torch.ones(1))
    assert other.changed


@pytest.mark.parametrize("cut", [0, 5, -1])
def test_computed_again_if_the_file_is_damaged(cut: int, tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / DERIVED_FILE
    content = bytearray(path.read_bytes())
    if cut == -1:
        content[-3] ^= 1
    path.write_bytes(content[:cut] if cut != -1 else content)
    assert torch.equal(Derived.load(tmp_path, "base", None).get("a", lambda: torch.ones(1)), torch.ones(1))


def test_weights_come_as_float32_or_not_at_all() -> None:
    derived = Derived(lambda name: torch.ones(2, dtype=torch.bfloat16))
    assert derived.has_weights
    assert derived.weight("any").dtype == torch.float32
    without = Derived(None)
    assert not without.has_weights
    with pytest.raises(InvalidAdapter, match=r"only with the base's weights \(model\.norm\.weight\) at hand"):
        without.weight("model.norm.weight")
