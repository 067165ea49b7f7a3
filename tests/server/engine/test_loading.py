"""From a folder to a base: what is refused, and what identifies it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from server.engine import loading
from server.engine.loading import UnsupportedModel
from tests.kit import Families, full_logits, prompts
from tests.quantized import hold, save_model, stock
from tests.tiny import greedy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(families: Families, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "llama"
    families("llama").stock.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def _edit(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_loads_what_was_saved_frozen_and_in_evaluation_mode(saved: Path, families: Families) -> None:
    model = loading.load_model(saved, loading.load_config(saved), torch.float32, CPU)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.generation_config.eos_token_id = None
    prompt = prompts(9)[0]
    assert greedy(model, prompt, 6) == families("llama").expected(None, prompt, 6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_loads_in_the_type_asked_for(saved: Path, dtype: str) -> None:
    model = loading.load_model(saved, loading.load_config(saved), loading.DTYPES[dtype], CPU)
    assert model.dtype == loading.DTYPES[dtype]


def test_refuses_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        loading.load_config(tmp_path)


def test_refuses_an_adapter_as_a_base(families: Families) -> None:
    adapter = families("llama").adapter("all")
    with pytest.raises(UnsupportedModel, match=r"config\.json|adapter"):
        loading.load_config(adapter)


def test_says_how_to_pass_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="is an adapter, not a base model; pass it with --adapter"):
        loading.load_config(folder)


def test_refuses_pickle_only_and_never_opens_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"weight": torch.ones(2)}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(UnsupportedModel, match="pickle checkpoints are never opened"):
        loading.load_config(folder)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "linear_attention"),
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
    ],
)
def test_refuses_by_config_before_reading_weights(
    folder: Path, fields: dict[str, object], reason: str
) -> None:
    _edit(folder, **fields)
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(UnsupportedModel, match=reason) as info:
        loading.load_config(folder)
    assert "\n" not in str(info.value)


def test_never_runs_code_that_comes_with_a_model(folder: Path) -> None:
    _edit(folder, model_type="mine", auto_map={"AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnsupportedModel):
        loading.load_config(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_refuses_a_broken_config_in_one_line(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UnsupportedModel):
        loading.load_config(folder)


@pytest.mark.parametrize("size", [0, 7, 100, 5000])
def test_refuses_truncated_weights(folder: Path, size: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(UnsupportedModel):
        loading.load_model(folder, loading.load_config(folder), torch.float32, CPU)


def test_refuses_weights_that_lack_a_tensor(folder: Path) -> None:
    """Transformers would fill it with random numbers and only log a warning."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"lack.* model\.layers\.1\.mlp\.up_proj\.weight"):
        loading.load_model(folder, loading.load_config(folder), torch.float32, CPU)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "opt", "gemma2"])
def test_a_tied_head_is_not_a_lacking_tensor(name: str, families: Families, tmp_path: Path) -> None:
    families(name).stock.save_pretrained(tmp_path)
    model = loading.load_model(tmp_path, loading.load_config(tmp_path), torch.float32, CPU)
    assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_refuses_weights_of_another_shape(folder: Path) -> None:
    _edit(folder, intermediate_size=96)
    with pytest.raises(UnsupportedModel) as info:
        loading.load_model(folder, loading.load_config(folder), torch.float32, CPU)
    assert "\n" not in str(info.value)


def test_a_path_that_is_none_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    for source in (str(tmp_path / "absent"), "./absent", "~/absent-model", "absent"):
        with pytest.raises(UnsupportedModel, match="there is no such folder"):
            loading.resolve_folder(source)
    assert loading.resolve_folder(str(tmp_path)) == tmp_path


def test_a_digest_is_of_content_not_of_place_or_load_type(folder: Path, tmp_path: Path) -> None:
    digest = loading.base_digest(folder)
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    _edit(moved, dtype="bfloat16", torch_dtype="float16", transformers_version="9", _name_or_path="x")
    assert loading.base_digest(moved) == digest
    _edit(moved, rms_norm_eps=0.5)
    assert loading.base_digest(moved) != digest
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert loading.base_digest(folder) != digest


def test_the_context_ends_where_a_rotary_scaling_would_mix_rows() -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=4096)
    assert loading.context_length(config) == 4096
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 1024}
    assert loading.context_length(_config(4096, dynamic)) == 1024
    assert loading.context_length(_config(4096, {"full_attention": dynamic, "sliding_attention": {}})) == 1024
    assert loading.context_length(_config(4096, {"rope_type": "longrope"}, original=512)) == 512
    assert loading.context_length(_config(4096, {"rope_type": "yarn", "factor": 4.0})) == 4096
    assert loading.context_length(SimpleNamespace(model_type="llama")) == 2048


def _config(length: int, rope: dict[str, Any], original: int | None = None) -> Any:
    return SimpleNamespace(
        model_type="llama",
        max_position_embeddings=length,
        rope_parameters=rope,
        original_max_position_embeddings=original,
    )


def test_chooses_device_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.choose_device("auto").type == loading.choose_device("cpu").type == "cpu"
    with pytest.raises(UnsupportedModel, match="sees no GPU"):
        loading.choose_device("cuda")
    full, half = (
        SimpleNamespace(model_type="llama", dtype=dtype) for dtype in (torch.float32, torch.float16)
    )
    assert loading.choose_dtype("float16", full, CPU) == torch.float16
    assert loading.choose_dtype("auto", full, CPU) == torch.float32
    monkeypatch.setattr(loading, "has_fast_bfloat16", lambda: True)
    assert loading.choose_dtype("auto", half, CPU) == torch.bfloat16
    monkeypatch.setattr(loading, "has_fast_bfloat16", lambda: False)
    assert loading.choose_dtype("auto", half, CPU) == torch.float32
    assert loading.choose_dtype("auto", full, torch.device("cuda")) == torch.bfloat16
    assert loading.choose_dtype("auto", half, torch.device("cuda")) == torch.float16


def test_end_tokens_come_from_every_source_that_names_one() -> None:
    model: Any = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[5, 6]), config=SimpleNamespace(eos_token_id=7)
    )
    assert loading.end_tokens(model, SimpleNamespace(eos_token_id=8)) == {5, 6, 7, 8}
    nothing: Any = SimpleNamespace(config=SimpleNamespace(eos_token_id=None))
    assert loading.end_tokens(nothing, SimpleNamespace()) == frozenset()


def test_a_missing_tokenizer_is_said_in_one_line(saved: Path) -> None:
    with pytest.raises(UnsupportedModel, match="its tokenizer can't be loaded") as info:
        loading.load_tokenizer(saved)
    assert "\n" not in str(info.value)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("full") / "model")


@pytest.mark.parametrize(("kind", "share"), [("nf4", 0.16), ("int8", 0.27)])
def test_a_quantised_base_takes_less_memory(full: Path, kind: str, share: float) -> None:
    plain, model = (
        dict(hold(full, each).named_parameters(remove_duplicate=False)) for each in ("none", kind)
    )
    assert plain.keys() == model.keys()
    linears = [name for name in plain if name.endswith("_proj.weight")]
    assert len(linears) == 3 * 7
    assert sum(model[name].nbytes for name in linears) < share * sum(plain[name].nbytes for name in linears)
    assert not any(model[name].is_floating_point() for name in linears)
    assert all(torch.equal(plain[name], model[name]) for name in plain.keys() - linears)
    assert not any(parameter.requires_grad for parameter in model.values())


@pytest.mark.parametrize(("kind", "double"), [("nf4", False), ("nf4", True), ("fp4", False), ("int8", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_that_is_quantised_already_is_loaded_as_it_is(
    full: Path, tmp_path: Path, kind: Any, double: bool, dtype: torch.dtype
) -> None:
    theirs = stock(full, kind, dtype, double)
    theirs.save_pretrained(tmp_path)
    config = loading.load_config(tmp_path)
    assert loading.stored_quantization(config) == loading.choose_quantization("none", config) == kind

    ours = full_logits(hold(tmp_path, "none", dtype), range(3, 30)).float()
    off = (ours - full_logits(theirs, range(3, 30)).float()).abs().max()
    # bitsandbytes rounds the rows, too, for int8
    assert off < (0.1 * ours.abs().max() if kind == "int8" else 1e-4)


def test_two_kinds_of_quantization_contradict_each_other(full: Path, tmp_path: Path) -> None:
    stock(full, "nf4").save_pretrained(tmp_path)
    config = loading.load_config(tmp_path)
    assert loading.choose_quantization("nf4", config) == "nf4"
    with pytest.raises(
        UnsupportedModel, match="--quantization int8: this checkpoint is quantised already, as nf4"
    ):
        loading.choose_quantization("int8", config)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "compressed-tensors"])
def test_other_quantizations_are_refused_by_name(folder: Path, method: str) -> None:
    _edit(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(
        UnsupportedModel, match=f"this checkpoint is quantised with {method}; only bitsandbytes"
    ):
        loading.load_config(folder)


@pytest.mark.parametrize("absent", ["bitsandbytes", "accelerate"])
def test_says_what_to_install(full: Path, monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    config = loading.load_config(full)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == absent else object())
    assert loading.choose_quantization("none", config) is None
    with pytest.raises(UnsupportedModel, match=f"needs {absent}: pip install 'multilora\\[quant\\]'"):
        loading.choose_quantization("nf4", config)


def test_an_encoder_is_not_served_quantised() -> None:
    config = AutoConfig.for_model("roberta")
    with pytest.raises(UnsupportedModel, match="roberta is an encoder"):
        loading.choose_quantization("int8", config)
