"""Token ids to text as they come, with stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "�"
_CONTEXT = 6  # prompt tokens to decode along with, so that a word's leading space is kept


class Decoder(Protocol):
    """The one method of a transformers tokenizer that is needed here."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class TextStream:
    """Text of one sequence. Holds back half characters and what may become a stop string."""

    def __init__(
        self, decoder: Decoder, prompt: Sequence[int], stop: Sequence[str] = (), include_stop: bool = False
    ) -> None:
        self._decoder = decoder
        self._ids = list(prompt[-_CONTEXT:])
        self._start = 0
        self._read = len(self._ids)
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""

    def push(self, token_id: int, *, stops: bool = True) -> tuple[str, str | None]:
        """Add a token. Returns the text that is certain now, and the stop string that ended it, if one did.

        `stops=False` adds text in which no stop string counts (before `min_tokens`).
        """
        self._ids.append(token_id)
        text = self._decode(final=False)
        return self._emit(text) if stops else (self._flush_held() + text, None)

    def finish(self) -> tuple[str, str | None]:
        """The text still held back, at the end of the sequence."""
        text, stop = self._emit(self._decode(final=True))
        return (text, stop) if stop else (text + self._flush_held(), None)

    def _decode(self, *, final: bool) -> str:
        before = self._decoder.decode(self._ids[self._start : self._read], skip_special_tokens=True)
        after = self._decoder.decode(self._ids[self._start :], skip_special_tokens=True)
        if len(after) <= len(before) or (after.endswith(_REPLACEMENT) and not final):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _emit(self, text: str) -> tuple[str, str | None]:
        text = self._held + text
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return text[: at + len(stop)] if self._include_stop else text[:at], stop
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def _flush_held(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
