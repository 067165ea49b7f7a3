"""A base with an adapter merged is a plain model folder that answers as PEFT does."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from adapters.delta import AdapterWeights, EmbeddingDelta, ExpertsDelta, ModuleDelta
from adapters.errors import AdapterError, InvalidAdapter
from server import export
from server.engine.loading import UnsupportedModel
from server.export import export_merged
from tests.kit import Families, Family, full_logits, prompts
from tests.tiny import VOCAB

PROMPT = prompts(20)[0]


def _save(family: Family, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The family's base with a tokenizer beside it."""
    copy.deepcopy(family.stock).to(dtype).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, "w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(folder)
    return folder


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "opt"])
def test_answers_as_peft(name: str, families: Families, tmp_path: Path) -> None:
    family = families(name)
    base, adapter = _save(family, tmp_path / "base"), family.adapter("patterns")
    before = _digests(base), _digests(adapter)
    export_merged(str(base), adapter, tmp_path / "out")
    assert (_digests(base), _digests(adapter)) == before
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = full_logits(family.oracle("patterns"), PROMPT)
    assert torch.allclose(full_logits(merged, PROMPT), expected, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(full_logits(family.stock, PROMPT), expected, atol=1e-1)
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".bin"]
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "out").eos_token == "w2"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("variant", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_what_needs_the_weights_of_the_base(
    name: str, variant: dict[str, Any], families: Families, tmp_path: Path
) -> None:
    family = families(name)
    own = f"needs_{next(iter(variant))}"
    family.configs[own] = {**family.configs["attention"], **variant}
    export_merged(str(_save(family, tmp_path / "base")), family.adapter(own), tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = full_logits(family.oracle(own), PROMPT)
    assert torch.allclose(full_logits(merged, PROMPT), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_merged_head_is_kept_also_where_it_was_tied(name: str, families: Families, tmp_path: Path) -> None:
    family = families(name)
    family.configs["head"] = {"r": 4, "lora_alpha": 16, "target_modules": ["lm_head", "v_proj"]}
    export_merged(str(_save(family, tmp_path / "base")), family.adapter("head"), tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = full_logits(family.oracle("head"), PROMPT)
    assert torch.allclose(full_logits(merged, PROMPT), expected, atol=1e-3, rtol=1e-4)
    embedding = family.stock.get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, embedding)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)],
)
def test_keeps_or_changes_the_type(
    dtype: str, stored: torch.dtype, families: Families, tmp_path: Path
) -> None:
    family = families("llama")
    base = _save(family, tmp_path / "base", torch.bfloat16)
    export_merged(str(base), family.adapter("all"), tmp_path / "out", dtype)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {stored}


def test_writes_nothing_over_what_is_there(families: Families, tmp_path: Path) -> None:
    base, adapter = _save(families("llama"), tmp_path / "base"), families("llama").adapter("all")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    for output in (tmp_path / "full", base, base / "config.json"):
        with pytest.raises(FileExistsError, match="is not empty"):
            export_merged(str(base), adapter, output)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept"]
    (tmp_path / "empty").mkdir()
    export_merged(str(base), adapter, tmp_path / "empty")


def test_refuses_a_wrong_adapter_or_base_and_writes_nothing(families: Families, tmp_path: Path) -> None:
    base = _save(families("llama"), tmp_path / "base")
    with pytest.raises(InvalidAdapter, match="another base"):
        export_merged(str(base), families("gpt2").adapter("all"), tmp_path / "out")
    with pytest.raises(InvalidAdapter, match=r"holds no adapter_config\.json"):
        export_merged(str(base), base, tmp_path / "out")
    with pytest.raises(UnsupportedModel):
        export_merged(str(tmp_path / "absent"), families("llama").adapter("all"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _merged(family: Family, folder: Path, weights: AdapterWeights, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The exported base with `weights` in it, loaded again."""
    monkeypatch.setattr(export, "read_adapter", lambda *_, **__: weights)
    export_merged(str(_save(family, folder / "base")), family.adapter("all"), folder / "out")
    return AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32)


def _random(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_term_of_a_linear_map_is_written(
    name: str, families: Families, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families(name)
    target = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}[name]
    module = family.stock.get_submodule(target)
    weight = module.weight.t() if name == "gpt2" else module.weight
    outputs, inputs = weight.shape
    delta = ModuleDelta(
        _random(2, inputs), _random(outputs, 2), 0.5, _random(outputs), None, input_scale=_random(inputs)
    )
    assert delta.magnitude is not None
    assert delta.input_scale is not None
    expected = copy.deepcopy(family.stock)
    own = weight * delta.input_scale * delta.magnitude[:, None] + 0.5 * delta.b @ delta.a
    inside = expected.get_submodule(target)
    inside.weight.copy_(own.t() if name == "gpt2" else own)
    if name == "gpt2":
        delta = replace(delta, shift=_random(outputs))
        inside.bias.copy_(module.bias * delta.magnitude + delta.shift)
    merged = _merged(family, tmp_path, AdapterWeights("d", {target: delta}), monkeypatch)
    assert torch.allclose(full_logits(merged, PROMPT), full_logits(expected, PROMPT), atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["lora", "rows", "both", "replaced", "head", "norm"])
def test_embeddings_and_whole_modules_are_written(
    name: str, kind: str, families: Families, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the head is the same as the embeddings (qwen2): trained rows are the head's too, no more."""
    family = families(name)
    tied = name == "qwen2"
    expected = copy.deepcopy(family.stock)
    table, head = expected.model.embed_tokens, expected.lm_head
    head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
    vocabulary, dim = table.weight.shape
    embeddings, replaced, ids = {}, {}, torch.tensor([3, 60])
    if kind in ("lora", "rows", "both"):
        record = EmbeddingDelta(scale=0.5)
        if kind != "lora":
            record = replace(record, ids=ids, rows=_random(2, dim))
            for weight in (table.weight, head.weight)[: 1 + tied]:
                weight[ids] = _random(2, dim)
        if kind != "rows":
            record = replace(record, a=_random(2, vocabulary), b=_random(dim, 2))
            table.weight += 0.5 * (_random(dim, 2) @ _random(2, vocabulary)).t()
        embeddings["model.embed_tokens"] = record
    else:
        path = {"replaced": "model.embed_tokens", "head": "lm_head", "norm": "model.norm"}[kind]
        weight = expected.get_submodule(path).weight
        replaced[path] = {"weight": _random(*weight.shape)}
        weight.copy_(replaced[path]["weight"])
    weights = AdapterWeights("d", {}, embeddings=embeddings, replaced=replaced)
    merged = _merged(family, tmp_path, weights, monkeypatch)
    prompt = [*PROMPT, 3, 60]
    assert torch.allclose(full_logits(merged, prompt), full_logits(expected, prompt), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_and_routers_are_written(
    name: str, families: Families, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families(name)
    family.configs["all"] = {"r": 2, "target_modules": ["q_proj"]}
    expected, experts = copy.deepcopy(family.stock), {}
    for key, shape in family.model.spec.experts.items():
        a = _random(shape.experts, 2, shape.in_features) / 4
        b = _random(shape.experts, shape.out_features, 2) / 4
        experts[key] = ExpertsDelta(a, b, 0.5)
        parameter = expected.get_parameter(key)
        for number in range(shape.experts):
            own = 0.5 * b[number] @ a[number]
            (parameter if shape.router else parameter[number]).add_(own.t() if shape.transposed else own)
    assert len(experts) >= 2 * family.stock.config.num_hidden_layers
    merged = _merged(family, tmp_path, AdapterWeights("d", {}, experts=experts), monkeypatch)
    assert torch.allclose(full_logits(merged, PROMPT), full_logits(expected, PROMPT), atol=1e-3, rtol=1e-4)
    assert not torch.allclose(full_logits(family.stock, PROMPT), full_logits(expected, PROMPT), atol=1e-1)


def test_what_no_checkpoint_can_hold_is_refused_by_name(
    families: Families, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.0.self_attn.q_proj"
    none = torch.empty(0, 48), torch.empty(48, 0), 1.0
    refused = {
        f"adds a bias to {name}": AdapterWeights("d", {name: ModuleDelta(*none, shift=torch.ones(48))}),
        "task head score.weight": AdapterWeights("d", {}, head={"score.weight": torch.ones(2, 48)}),
        "invocation tokens": AdapterWeights("d", {}, invocation=(5, 6)),
    }
    for number, (reason, weights) in enumerate(refused.items()):
        with pytest.raises(AdapterError, match=rf"can't be merged: .*{reason}.*--adapter NAME=PATH"):
            _merged(families("llama"), tmp_path / str(number), weights, monkeypatch)
        assert not (tmp_path / str(number) / "out").exists()
