"""The tokenizer: bytes in, the same bytes out; chat and completions give the base one form."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from training.base import MODEL_DIR
from training.base.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, build_tokenizer, encode


@pytest.mark.parametrize("text", ["do: cat\n", "Zürich €5 – 猫\t\x00", "  two  spaces ", ""])
def test_every_text_survives(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer(text)["input_ids"] == [BOS_ID, *encode(text)]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == encode(text)
    assert tokenizer.decode(encode(text)) == text


def test_special_tokens() -> None:
    tokenizer = build_tokenizer()
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (PAD_ID, BOS_ID, EOS_ID)
    assert len(tokenizer) == VOCABULARY


def test_chat_is_the_prompt_form() -> None:
    tokenizer = build_tokenizer()
    chat = [{"role": "user", "content": "do: cat"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == tokenizer("do: cat\n")["input_ids"]


def test_chat_takes_system_text_history_and_parts() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "up: "}, {"type": "text", "text": "cat"}]},
        {"role": "assistant", "content": "CAT"},
        {"role": "user", "content": "rev: cat"},
    ]
    text = build_tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|begin|>Be brief.\nup: cat\nCAT<|end|>rev: cat\n"


def test_the_shipped_files_are_what_the_code_builds(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (MODEL_DIR / name).read_bytes()
    assert AutoTokenizer.from_pretrained(MODEL_DIR)("up: cat\n")["input_ids"] == [
        BOS_ID,
        *encode("up: cat\n"),
    ]
