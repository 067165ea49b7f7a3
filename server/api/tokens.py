"""The bytes of single tokens, for logprobs: `decode` on one token can't show half a character."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Token id -> the bytes that it adds to the text.

    The two families of vocabularies are told apart by the tokenizer's own decoder: byte-level ones (GPT-2,
    Llama 3, Qwen) write each byte as one printable character; the others write text, with `▁` for a space and
    `<0xE2>` for a byte that has no token of its own.
    """

    def __init__(self, tokenizer: Any, vocabulary: Mapping[str, int]) -> None:
        self._names = {token_id: name for name, token_id in vocabulary.items()}
        self.special = frozenset(tokenizer.all_special_ids)
        kinds = _decoder_kinds(tokenizer)
        self._table = byte_level_table() if "ByteLevel" in kinds else None
        self._space = "▁" if kinds & {"Metaspace", "Replace"} else None
        self._fallback = "ByteFallback" in kinds

    def __call__(self, token_id: int) -> bytes:
        """Empty for an id without a token: models often have more rows than the tokenizer has tokens."""
        name = self._names.get(token_id, "")
        if token_id in self.special:
            return name.encode()
        if self._table is not None:
            table = self._table
            return b"".join(bytes((table[c],)) if c in table else c.encode() for c in name)
        if self._fallback and (match := BYTE_FALLBACK.fullmatch(name)):
            return bytes((int(match[1], 16),))
        return (name.replace(self._space, " ") if self._space else name).encode()

    def text(self, token_id: int, prefix: str = "") -> str:
        r"""The token as text, or `\xe2\x80` after `prefix` where it is not whole characters."""
        raw = self(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return prefix + "".join(f"\\x{byte:02x}" for byte in raw)


def byte_level_table() -> dict[str, int]:
    """GPT-2's character for each byte, reversed: printable bytes stand for themselves, the others follow
    from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """The `type` of the fast tokenizer's decoder, and of its parts if it is a sequence."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else None
    parts = [decoder, *decoder.get("decoders", [])] if decoder else []
    return {part["type"] for part in parts}
