"""Log-probabilities in the two shapes of OpenAI's API."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from server.api.streaming import Body
from server.api.tokens import TokenBytes
from server.engine.request import TokenLogprob

Lists = dict[str, list[object]]
LEAST = -9999.0
"""Stands for minus infinity, which JSON can't say."""


def chat_logprobs(tokens: TokenBytes, logprobs: Iterable[TokenLogprob]) -> Body:
    """`{"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}`."""

    def entry(token_id: int, logprob: float) -> dict[str, object]:
        raw = list(tokens(token_id))
        return {"token": tokens.text(token_id), "logprob": max(logprob, LEAST), "bytes": raw}

    content = [
        {**entry(item.token_id, item.logprob), "top_logprobs": [entry(*top) for top in item.top]}
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """`{tokens, token_logprobs, top_logprobs, text_offset}` for one choice, chunk by chunk.

    The offset goes on from chunk to chunk, in characters of the whole text; bytes of half a character wait in
    the decoder until the rest comes.
    """

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def render(self, logprobs: Iterable[TokenLogprob]) -> Lists:
        """The generated tokens of one chunk."""
        result = _empty()
        for item in logprobs:
            self._append(result, item.token_id, item)
        return result

    def render_prompt(
        self, text: str, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]
    ) -> Lists:
        """The tokens of the echoed prompt `text`; the first one has no probability."""
        result = _empty()
        for token_id, item in zip(token_ids, logprobs, strict=True):
            self._append(result, token_id, item, text)
        self._offset = len(text)
        self._decoder.reset()
        return result

    def _append(
        self,
        result: Lists,
        token_id: int,
        item: TokenLogprob | None,
        prompt: str | None = None,
    ) -> None:
        name = self._tokens.text(token_id, "bytes:")
        result["tokens"].append(name)
        result["text_offset"].append(self._offset)
        result["token_logprobs"].append(None if item is None else max(item.logprob, LEAST))
        result["top_logprobs"].append(None if item is None else self._top(name, item))
        if token_id not in self._tokens.special:
            self._offset += len(self._decoder.decode(self._tokens(token_id)))
        elif prompt is not None and prompt.startswith(name, self._offset):
            # Written out in the prompt by its author; those that the tokenizer adds are not in the text.
            self._offset += len(name)

    def _top(self, name: str, item: TokenLogprob) -> dict[str, float]:
        top: dict[str, float] = {}
        for token_id, logprob in item.top:
            top.setdefault(self._tokens.text(token_id, "bytes:"), max(logprob, LEAST))
        # OpenAI reports the chosen token as well where it is not among the likeliest.
        top.setdefault(name, max(item.logprob, LEAST))
        return top


def joined(first: Lists, second: Lists) -> Lists:
    """The lists of `first` followed by those of `second`."""
    return {key: first[key] + second[key] for key in first}


def _empty() -> Lists:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
