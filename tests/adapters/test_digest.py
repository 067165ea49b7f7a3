"""One adapter, one digest, however it was saved; another adapter, another digest."""

from __future__ import annotations

import pytest
import torch

from adapters.config import parse_config
from adapters.digest import content_digest
from tests.adapters.conftest import LIMITS, AdapterFiles

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def digest(files: AdapterFiles) -> str:
    return content_digest(parse_config(files.config, LIMITS), files.weights, LIMITS)


def test_layout_does_not_count(files: AdapterFiles) -> None:
    before = digest(files)
    tensors = files.tensors()
    files.save(dict(sorted(tensors.items(), reverse=True)), {"note": "other metadata"})
    files.set(
        base_model_name_or_path="elsewhere",
        lora_dropout=0.3,
        target_modules=["v_proj", "q_proj"],
        peft_version="1",
    )
    assert digest(files) == before
    files.set(rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 8})
    assert digest(files) == before


@pytest.mark.parametrize(
    "fields", [{"lora_alpha": 9}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 1}}]
)
def test_scale_counts(fields: dict[str, object], files: AdapterFiles) -> None:
    before = digest(files)
    files.set(**fields)
    assert digest(files) != before


def test_every_tensor_counts(files: AdapterFiles) -> None:
    tensors, seen = files.tensors(), {digest(files)}
    for key in tensors:
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        changed[key][-1, -1] += 1e-3
        files.save(changed)
        seen.add(digest(files))
    files.save(tensors | {KEY: tensors[KEY].double()})
    seen.add(digest(files))
    files.save(tensors | {KEY: tensors[KEY].reshape(32, 4)})
    seen.add(digest(files))
    files.save({name: tensor for name, tensor in tensors.items() if "layers.0" not in name})
    seen.add(digest(files))
    assert len(seen) == len(tensors) + 4


def test_large_tensors_are_read_in_pieces(files: AdapterFiles) -> None:
    tensors = files.tensors()
    tensors[KEY] = torch.ones(4, 300_000)
    files.save(tensors)
    before = digest(files)
    tensors[KEY][-1, -1] = 2
    files.save(tensors)
    assert digest(files) != before
