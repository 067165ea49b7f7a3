"""Token ids with labels, and how a text that is partly learned becomes such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

IGNORE = -100
"""The label that the loss leaves out."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids with labels: the ids that the loss counts, `IGNORE` elsewhere."""

    ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """How many labels the loss counts."""
        return len(self.labels) - self.labels.count(IGNORE)


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that turning an example into tokens needs, and showing them."""

    eos_token: Any
    eos_token_id: Any
    chat_template: Any
    special_tokens_map: Any
    added_tokens_decoder: Any

    def __call__(self, text: Any = None, **options: Any) -> Mapping[str, Any]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def decode(self, token_ids: Any, **options: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> Any: ...


def token_ids(tokenizer: ChatTokenizer, text: str, special: bool = False) -> list[int]:
    """The ids of a text. `special`: with those that the tokenizer puts around it."""
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def is_special(token: int, tokenizer: ChatTokenizer) -> bool:
    """Whether a token stands for no text."""
    known = tokenizer.added_tokens_decoder.get(token)
    return known is not None and bool(known.special)


def continued(tokenizer: ChatTokenizer, pieces: Sequence[str], special: bool = False) -> list[list[int]]:
    """The ids of texts that follow each other, without a token across two of them.

    Before each piece the model has seen what a server shows it that tokenizes all the text up to there, and
    goes on as the tokenizer writes the whole. Where the tokenizer puts a token across two pieces, which no
    model could say, the later one is tokenized by itself.
    """
    whole = token_ids(tokenizer, "".join(pieces), special)
    alone = [token_ids(tokenizer, piece, special and index == 0) for index, piece in enumerate(pieces)]
    if [token for piece in alone for token in piece] == whole:
        return alone
    found: list[list[int]] = []
    done: list[int] = []
    text = ""
    for piece, tokens in zip(pieces, alone, strict=True):
        text += piece
        so_far = token_ids(tokenizer, text, special)
        fits = so_far[: len(done)] == done
        found.append(so_far[len(done) :] if fits else tokens)
        done += found[-1]
    return found


def learn(pieces: Sequence[list[int]], learned: Sequence[bool]) -> Tokens:
    """The pieces after each other. The first token of all is never predicted, and so never learned."""
    ids = [token for piece in pieces for token in piece]
    labels = [
        token if learns else IGNORE for piece, learns in zip(pieces, learned, strict=True) for token in piece
    ]
    return Tokens(ids, [IGNORE, *labels[1:]] if labels else [])


def cut(tokens: Tokens, max_length: int | None) -> Tokens:
    """The first `max_length` tokens."""
    return Tokens(tokens.ids[:max_length], tokens.labels[:max_length])
