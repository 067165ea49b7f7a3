"""Other kinds than plain LoRA, as the registry keeps them: labels, heads, tuners, what a base decides."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch

from adapters.base import BaseSpec
from adapters.checkpoint.derived import DERIVED_FILE
from adapters.errors import (
    InvalidAdapter,
)
from adapters.registry.registry import Registry
from tests.adapters.conftest import LIMITS, AdapterFiles, plain_adapter, spec_of, tiny_llama


@pytest.fixture
def registry(tmp_path: Path, base: BaseSpec) -> Iterator[Registry]:
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        yield registry


def test_what_follows_from_the_base_is_computed_once(tmp_path: Path) -> None:
    stock, asked = tiny_llama(), list[str]()
    files = plain_adapter(tmp_path / "adapter", use_dora=True, init_lora_weights="pissa")

    def weights(name: str) -> torch.Tensor:
        asked.append(name)
        parameter: torch.Tensor = stock.get_parameter(name)
        return parameter

    with Registry(tmp_path / "data", spec_of(stock), LIMITS, base_weights=weights) as registry:
        version, _ = registry.publish_folder("tone", files.folder)
        assert (version.variant, version.rank) == ("dora", 8)
        assert asked
        asked.clear()
        first = registry.load(version.digest)
        assert asked == []
        path = tmp_path / "data" / "adapters" / version.digest / DERIVED_FILE
        path.unlink()
        again = registry.load(version.digest)
        assert asked
        assert path.is_file()
    for name, delta in first.deltas.items():
        for one, other in zip(delta.tensors(), again.deltas[name].tensors(), strict=True):
            torch.testing.assert_close(one, other)
    with Registry(tmp_path / "data", spec_of(stock), LIMITS) as registry:
        assert registry.load(version.digest).deltas.keys() == first.deltas.keys()


def classifier(folder: Path) -> AdapterFiles:
    files = plain_adapter(folder)
    files.set(task_type="SEQ_CLS", modules_to_save=["score", "classifier"])
    files.save(files.tensors() | {"base_model.model.score.weight": torch.ones(2, 32)})
    return files


def test_labels(registry: Registry, tmp_path: Path) -> None:
    files = classifier(tmp_path / "adapter")
    plain, _ = registry.publish_folder("mood", files.folder)
    assert (plain.task, plain.labels) == ("SEQ_CLS", ("LABEL_0", "LABEL_1"))
    (files.folder / "config.json").write_text('{"id2label": {"0": "bad", "1": "good"}}')
    named, is_new = registry.publish_folder("mood", files.folder)
    assert (named.labels, is_new, named.digest != plain.digest) == (("bad", "good"), True, True)
    (files.folder / "labels.json").write_text('["sad", "glad"]')
    other, _ = registry.publish_folder("mood", files.folder)
    for version in (plain, named, other):
        assert registry.load(version.digest).labels == version.labels
    assert other.labels == ("sad", "glad")
    given = registry.publish("given", files.config, files.weights, labels=b'["sad", "glad"]')[0]
    assert given.digest == other.digest
    with pytest.raises(InvalidAdapter, match="3 labels for a head of 2 outputs"):
        registry.publish("mood", files.config, files.weights, labels=b'["a", "b", "c"]')


def test_a_model_s_config_beside_an_adapter_without_a_head(registry: Registry, files: AdapterFiles) -> None:
    (files.folder / "config.json").write_text('{"id2label": {"0": "bad", "1": "good"}}')
    assert registry.publish_folder("tone", files.folder)[0].labels == ()


def test_heads_too_large_for_the_type_that_is_served(tmp_path: Path, base: BaseSpec) -> None:
    files = classifier(tmp_path / "adapter")
    files.save(files.tensors() | {"base_model.model.score.weight": torch.full((2, 32), 1e6)})
    with (
        Registry(tmp_path / "data", base, LIMITS, torch.float16) as registry,
        pytest.raises(InvalidAdapter, match=r"the head has values too large for torch\.float16"),
    ):
        registry.publish_folder("mood", files.folder)


def test_other_tuners(registry: Registry, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.IA3Config(
            target_modules=["q_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            modules_to_save=["model.norm"],
            task_type="CAUSAL_LM",
        )
        wrapped = peft.get_peft_model(tiny_llama(), config)
        wrapped.save_pretrained(tmp_path / "adapter")
    version, _ = registry.publish_folder("scales", tmp_path / "adapter")
    assert (version.variant, version.rank, version.target_modules) == ("ia3", 0, ("down_proj", "q_proj"))
    adapter = registry.load(version.digest)
    assert adapter.deltas["model.layers.0.mlp.down_proj"].input_scale is not None
    assert adapter.replaced.keys() == {"model.norm"}
