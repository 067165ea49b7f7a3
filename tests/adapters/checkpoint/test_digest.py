"""One adapter, one digest, however it was saved; another adapter, another digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.checkpoint.config import parse_config
from adapters.checkpoint.digest import content_digest
from tests.adapters.conftest import LIMITS, AdapterFiles, plain_adapter

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


def test_plain_adapters_keep_the_digest_that_they_always_had(files: AdapterFiles) -> None:
    """Computed here anew, so that adapters stored by older releases stay intact."""
    hasher = hashlib.sha256()

    def add(field: bytes) -> None:
        hasher.update(len(field).to_bytes(8, "little") + field)

    tensors = files.tensors()
    add(b"multilora adapter 1")
    for key in sorted(key for key in tensors if "lora_A" in key):
        add(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight").encode())
        add((2.0).hex().encode())
        for name in (key, key.replace("lora_A", "lora_B")):
            add(b"F32")
            add(",".join(map(str, tensors[name].shape)).encode())
            add(tensors[name].numpy().tobytes())
    assert digest(files) == hasher.hexdigest()


MORE: list[dict[str, Any]] = [
    {"init_lora_weights": "pissa"},
    {"task_type": "FEATURE_EXTRACTION"},
    {"alora_invocation_tokens": [1, 2]},
    {"alora_invocation_tokens": [2, 1]},
    {"use_bdlora": {"nblocks": 1}},
]


def test_what_is_more_than_two_factors_counts(files: AdapterFiles) -> None:
    seen = {digest(files)}
    for fields in MORE:
        before = files.config
        files.set(**fields)
        seen.add(digest(files))
        (files.folder / "adapter_config.json").write_bytes(before)
    config = parse_config(files.config, LIMITS)
    seen.add(content_digest(config, files.weights, LIMITS, ("good", "bad")))
    seen.add(content_digest(config, files.weights, LIMITS, ("bad", "good")))
    assert len(seen) == len(MORE) + 3


def test_what_does_not_decide_does_not_count(tmp_path: Path) -> None:
    files = plain_adapter(tmp_path, use_dora=True, modules_to_save=["norm", "lm_head"])
    before = digest(files)
    files.set(
        target_modules=["v_proj", "q_proj"],
        modules_to_save=["lm_head", "norm"],
        lora_dropout=0.4,
        base_model_name_or_path="elsewhere",
        velora_config=None,
    )
    files.save(dict(sorted(files.tensors().items(), reverse=True)), {"note": "other metadata"})
    assert digest(files) == before
    tensors = files.tensors()
    for key in tensors:
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        changed[key].view(-1)[-1] += 1e-2
        files.save(changed)
        assert digest(files) != before
