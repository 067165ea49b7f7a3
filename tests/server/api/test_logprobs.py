"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

import math

from server.api.logprobs import CompletionLogprobs, chat_logprobs, joined
from server.api.tokens import TokenBytes
from server.engine.request import TokenLogprob
from tests.server.api.fakes import tokenizer, tokens

TOKENS = TokenBytes(tokenizer(), tokenizer().get_vocab())


def plain(text: str) -> list[TokenLogprob]:
    return [TokenLogprob(token_id, -1.0) for token_id in tokens(text)]


def test_chat_has_text_and_bytes_of_each_token() -> None:
    item = TokenLogprob(0xC3, -0.25, ((0x61, -0.5), (0xC3, -math.inf)))

    assert chat_logprobs(TOKENS, [item]) == {
        "content": [
            {
                "token": r"\xc3",
                "logprob": -0.25,
                "bytes": [0xC3],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.5, "bytes": [0x61]},
                    {"token": r"\xc3", "logprob": -9999.0, "bytes": [0xC3]},
                ],
            }
        ],
        "refusal": None,
    }


def test_offsets_count_characters_across_chunks() -> None:
    logprobs = CompletionLogprobs(TOKENS)
    first = logprobs.render(plain("aé")[:2])
    second = logprobs.render(plain("aéb")[2:])

    assert joined(first, second) == {
        "tokens": ["a", r"bytes:\xc3", r"bytes:\xa9", "b"],
        "token_logprobs": [-1.0] * 4,
        "top_logprobs": [{"a": -1.0}, {r"bytes:\xc3": -1.0}, {r"bytes:\xa9": -1.0}, {"b": -1.0}],
        "text_offset": [0, 1, 1, 2],
    }


def test_the_chosen_token_is_among_the_top_ones_even_if_unlikely() -> None:
    item = TokenLogprob(0x7A, -7.0, ((0x61, -0.1), (0x62, -2.0)))
    rendered = CompletionLogprobs(TOKENS).render([item])

    assert rendered["top_logprobs"] == [{"a": -0.1, "b": -2.0, "z": -7.0}]


def test_special_tokens_have_no_width_unless_the_prompt_spells_them_out() -> None:
    ids = [256, *tokens("hi")]
    scores = [None, *plain("hi")]
    added, written = CompletionLogprobs(TOKENS), CompletionLogprobs(TOKENS)

    assert added.render_prompt("hi", ids, scores)["text_offset"] == [0, 0, 1]
    assert written.render_prompt("</s>hi", ids, scores)["text_offset"] == [0, 4, 5]
    assert written.render(plain("!"))["text_offset"] == [6]
    assert written.render([TokenLogprob(256, -1.0)])["text_offset"] == [7]
    assert written.render(plain("?"))["text_offset"] == [7]
