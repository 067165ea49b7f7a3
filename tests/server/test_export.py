"""A base with an adapter merged is a plain model folder that answers as PEFT does."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from adapters.errors import InvalidAdapter
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
