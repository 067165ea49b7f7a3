"""`multilora train plan`: a file in, both presets with their reasons out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.server.cli.conftest import Run
from training.base import MODEL_DIR


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"do: {word}\n", "completion": word.upper()} for word in ("ab", "cd", "ef")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines * 100))
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A 7B, of which there is only the config, with the shipped tokenizer."""
    folder = tmp_path / "large"
    folder.mkdir()
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    config = AutoConfig.for_model("llama", **shape, num_attention_heads=32, vocab_size=32000)
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((MODEL_DIR / name).read_bytes())
    return folder


def test_both_presets_and_the_reasons_of_one(multilora: Run, rows: Path) -> None:
    ran = multilora("train", "plan", "--data", rows)
    assert ran.code == 0
    assert "722,432 parameters" in ran.out
    assert "300 rows; 3,300 tokens, 900 of them learned" in ran.out
    assert "rank, alpha      8, 32" in ran.out
    assert "71,680 (9.026%)" in ran.out
    assert "reasons of modern" in ran.out
    assert "reasons of tutorial" in multilora("train", "plan", "--data", rows, "--preset", "tutorial").out


def test_all_of_it_for_programs(multilora: Run, rows: Path) -> None:
    told = multilora(
        "train", "plan", "--data", rows, "--rate", "100", "--targets", "q_proj,up_proj", "--json"
    ).json
    assert told["data"]["rows"] == 300
    modern = told["presets"]["modern"]
    assert modern["spec"]["lora"]["target_modules"] == ["q_proj", "up_proj"]
    assert modern["duration"]["source"] == "given"
    assert modern["duration"]["seconds"] == pytest.approx(3 * 3300 / 100)


def test_one_number_of_the_batch_from_the_others(multilora: Run, rows: Path) -> None:
    words = ("train", "plan", "--data", rows, "--batch-size", 2, "--effective", 16, "--devices", 2)
    assert "2 rows x 4 passes x 2 devices = 16" in multilora(*words).out
    ran = multilora(*words, "--accumulation", 3)
    assert ran.code == 1
    assert ran.err == (
        "multilora: batch size 2 x accumulation 3 x 2 devices is 12, not the effective batch 16: "
        "leave one out\n"
    )


def test_a_card_that_is_too_small(multilora: Run, rows: Path, large: Path) -> None:
    ran = multilora("train", "plan", "--model", large, "--data", rows, "--gpu", "8GB", "--method", "lora")
    assert ran.code == 1
    assert "does NOT fit" in ran.out
    assert "does not fit 8.0 GiB, of which a tenth stays free; what would: qlora" in ran.err
    assert "a card of 16 GB" in ran.err
    fitting = multilora("train", "plan", "--model", large, "--data", rows, "--gpu", "8GB")
    assert fitting.code == 0
    assert "the base fits only in 4 bits" in fitting.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpu", "big"), "a GPU's memory is given as 24GB, not as 'big'"),
        (("--targets", "query"), "target_modules query: llama has no such linear layer; it has down_proj"),
        (("--rank", "0"), "rank must be at least 1, not 0"),
        (("--model", "/nowhere"), "/nowhere: "),
    ],
)
def test_what_can_not_be_is_one_line(multilora: Run, rows: Path, words: tuple[str, ...], said: str) -> None:
    ran = multilora("train", "plan", "--data", rows, *words)
    assert ran.code == 1
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_bad_files_are_told(multilora: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": 3}\n')
    ran = multilora("train", "plan", "--data", bad)
    assert (ran.code, "line 1" in ran.err) == (1, True)
    ran = multilora("train", "plan", "--data", tmp_path / "none.jsonl")
    assert (ran.code, "No such file" in ran.err) == (1, True)
