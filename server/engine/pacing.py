"""How much prefill may ride along with decoding, so that running answers keep flowing.

A step with prefill makes every running answer wait. With one prompt beside many answers it may last about
twice a decode-only step; with many prompts beside few answers it may last as much longer as there are more
prompts than answers, since then the prompts' wait weighs more.
"""

from __future__ import annotations

_FIRST = 64  # prefill tokens beside decoding before anything was measured
_LEAST = 16
_BLEND = 0.2


class Pacer:
    """Sizes the prefill part of a step from what steps took so far."""

    def __init__(self, most: int) -> None:
        """`most`: tokens in one step, whatever was measured."""
        self._most = most
        self._decode_seconds = 0.0
        self._token_seconds = 0.0

    def prefill_budget(self, decodes: int, prompts: int = 1) -> int:
        """Prefill tokens for a step beside `decodes` decoding sequences, while `prompts` others wait."""
        if not decodes:
            return self._most
        if not self._decode_seconds or not self._token_seconds:
            return min(_FIRST, self._most)
        seconds = self._decode_seconds * max(1.0, prompts / decodes)
        return max(_LEAST, min(self._most, int(seconds / self._token_seconds)))

    def record(self, decodes: int, prefill: int, seconds: float) -> None:
        """Learn from one step."""
        if not prefill:
            self._decode_seconds = _blend(self._decode_seconds, seconds)
        elif not decodes:
            self._token_seconds = _blend(self._token_seconds, seconds / prefill)
        elif seconds > self._decode_seconds:
            self._token_seconds = _blend(self._token_seconds, (seconds - self._decode_seconds) / prefill)


def _blend(old: float, new: float) -> float:
    return new if not old else old + _BLEND * (new - old)
