"""The bytes of tokens, for both families of vocabularies."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from server.api.tokens import TokenBytes, byte_level_table
from tests.server.api.fakes import tokenizer


def test_byte_level_names_are_bytes() -> None:
    tokens = TokenBytes(tokenizer(), tokenizer().get_vocab())

    assert [tokens(byte) for byte in range(256)] == [bytes((byte,)) for byte in range(256)]
    assert (tokens(256), tokens(257)) == (b"</s>", b"")
    assert tokens.special == {256}


def test_the_table_covers_every_byte_once() -> None:
    table = byte_level_table()

    assert sorted(table.values()) == list(range(256))
    assert (table["A"], table["Ġ"], table["Ċ"]) == (65, 32, 10)


def test_sentencepiece_names_are_text() -> None:
    vocabulary = {"<unk>": 0, "▁the": 1, "<0xE2>": 2, "é": 3, "</s>": 4}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokens = TokenBytes(fast, fast.get_vocab())

    assert [tokens(i) for i in range(5)] == [b"<unk>", b" the", b"\xe2", "é".encode(), b"</s>"]


def test_half_characters_are_written_as_escapes() -> None:
    tokens = TokenBytes(tokenizer(), tokenizer().get_vocab())

    assert tokens.text(0x41) == "A"
    assert tokens.text(0xE2) == r"\xe2"
    assert tokens.text(0xE2, "bytes:") == r"bytes:\xe2"
