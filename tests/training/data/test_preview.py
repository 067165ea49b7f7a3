"""Previews: the tokens of training, each with its text, and nothing lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from training.base.tokenizer import build_tokenizer
from training.data.inspection import Setting
from training.data.preview import Part, Piece, Preview, preview_file

TOKENIZER = build_tokenizer()


def previews(folder: Path, *rows: Any, count: int = 9, **setting: Any) -> list[Preview]:
    path = folder / "data.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return list(preview_file(path, Setting(**{"tokenizer": TOKENIZER, **setting}), count))


def test_each_token_has_its_text_and_its_mask(tmp_path: Path) -> None:
    (found,) = previews(tmp_path, {"prompt": "a ", "completion": "b"})
    pieces = (
        Piece("<|begin|>", trained=False, special=True),
        Piece("a", trained=False, special=False),
        Piece(" ", trained=False, special=False),
        Piece("b", trained=True, special=False),
        Piece("<|end|>", trained=True, special=True),
    )
    assert found == Preview(1, (Part("", pieces, tokens=5, trained=2, special=2),))


@pytest.mark.parametrize("text", ["é漢😀 \n\t", "a\u0301", "\ufffd?"])
def test_no_character_is_lost_that_is_spread_over_tokens(tmp_path: Path, text: str) -> None:
    (found,) = previews(tmp_path, {"prompt": text, "completion": text})
    (part,) = found.parts
    for trained in (False, True):
        shown = "".join(piece.text for piece in part.pieces if piece.trained == trained)
        assert shown.removeprefix("<|begin|>") == text + "<|end|>" * trained


def test_the_space_that_a_word_begins_with_is_shown(tmp_path: Path) -> None:
    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581so", -1.0), ("\u2581it", -1.0)], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    (found,) = previews(tmp_path, {"text": "so it"}, tokenizer=PreTrainedTokenizerFast(tokenizer_object=core))
    assert [piece.text for piece in found.parts[0].pieces] == [" so", " it"]


def test_rows_of_several_parts_have_names(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert [part.name for part in previews(tmp_path, pair)[0].parts] == ["chosen", "rejected"]
    (found,) = previews(tmp_path, {"source": "a", "target": "b"})
    assert [(part.name, part.trained) for part in found.parts] == [("source", 0), ("target", 3)]


def test_classes_are_shown(tmp_path: Path) -> None:
    (found,) = previews(tmp_path, {"text": "a", "label": "good"})
    assert (found.label, found.parts[0].trained) == ("good", 0)
    (tagged,) = previews(tmp_path, {"tokens": ["a", "b"], "labels": ["X", "O"]})
    assert [(piece.text, piece.label) for piece in tagged.parts[0].pieces if piece.label] == [
        ("a", "X"),
        ("b", "O"),
    ]


def test_what_is_cut_off_is_counted(tmp_path: Path) -> None:
    (found,) = previews(tmp_path, {"prompt": "abc", "completion": "de"}, max_length=5)
    assert (found.parts[0].tokens, found.parts[0].trained, found.parts[0].cut) == (5, 1, 2)


def test_a_row_that_can_not_be_used_has_its_reasons(tmp_path: Path) -> None:
    rows = ["{", {"prompt": "abc", "completion": "de"}, {"text": "a", "label": "x"}]
    bad, empty, other = previews(tmp_path, *rows, max_length=4, task="CAUSAL_LM")
    assert (bad.line, bad.parts) == (1, ())
    assert "not JSON" in bad.faults[0]
    assert empty.faults == ("all 3 trained tokens of 7 are beyond max_length=4",)
    assert "learns from" in other.faults[0]


def test_only_so_many_rows_are_read(tmp_path: Path) -> None:
    found = previews(tmp_path, *[{"text": "a"}] * 5, count=2)
    assert [preview.line for preview in found] == [1, 2]
