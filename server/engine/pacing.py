"""How much prefill may ride along with decoding, so that running answers keep flowing."""

from __future__ import annotations

_FIRST = 64  # prefill tokens beside decoding before anything was measured
_LEAST = 16
_BLEND = 0.2


class Pacer:
    """Keeps a step with prefill within about twice a decode-only step, from what steps took so far."""

    def __init__(self, most: int) -> None:
        """`most`: tokens in one step, whatever was measured."""
        self._most = most
        self._decode_seconds = 0.0
        self._token_seconds = 0.0

    def prefill_budget(self, decodes: int) -> int:
        """Prefill tokens for a step with `decodes` decoding sequences."""
        if not decodes:
            return self._most
        if not self._decode_seconds or not self._token_seconds:
            return min(_FIRST, self._most)
        return max(_LEAST, min(self._most, int(self._decode_seconds / self._token_seconds)))

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
