"""Training data: JSON lines in, checked examples out.

A line is `{"prompt": ..., "completion": ...}` or `{"messages": [{"role": ..., "content": ...}, ...]}`.
A file is either right or refused with every bad line named at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROLES = ("system", "user", "assistant")
IGNORE = -100
"""The label that the loss leaves out."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TextExample:
    """A prompt and the completion to learn."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A chat; every assistant message is to be learned."""

    messages: tuple[Message, ...]


Example = TextExample | ChatExample


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one line can't be used."""

    line: int
    reason: str


class DataError(ValueError):
    """A training file with bad lines; `problems` has all of them."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  line {problem.line}: {problem.reason}" for problem in problems)
        super().__init__(f"{source}: {len(problems)} bad line{'s' * (len(problems) != 1)}\n{lines}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids with labels: the ids that the loss counts, `IGNORE` elsewhere."""

    ids: list[int]
    labels: list[int]


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that turning an example into tokens needs."""

    eos_token_id: int | None
    chat_template: str | None

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...


def read_jsonl(path: Path) -> list[Example]:
    """Read and check a training file.

    Raises:
        DataError: some lines are bad, or there is none.
    """
    return parse_lines(path.read_text(encoding="utf-8-sig").split("\n"), path.name)


def parse_lines(lines: Iterable[str], source: str = "data") -> list[Example]:
    """Check JSON lines; blank lines are skipped.

    Raises:
        DataError: some lines are bad, or there is none.
    """
    examples: list[Example] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            examples.append(parse_row(json.loads(line)))
        except json.JSONDecodeError as error:
            problems.append(Problem(number, f"not JSON: {error.msg} at column {error.colno}"))
        except ValueError as error:
            problems.append(Problem(number, str(error)))
    if not examples and not problems:
        problems.append(Problem(1, "there is no example in this file"))
    if problems:
        raise DataError(source, problems)
    return examples


def parse_row(row: Any) -> Example:
    """One example from a decoded JSON value.

    Raises:
        ValueError: it is not an example; the message says why.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, not {type(row).__name__}")
    keys = set(row)
    if keys == {"prompt", "completion"}:
        return TextExample(_text(row, "prompt"), _filled(row, "completion"))
    if keys == {"messages"}:
        return ChatExample(_messages(row["messages"]))
    found = ", ".join(sorted(map(str, keys))) or "nothing"
    raise ValueError(f"expected the keys prompt and completion, or messages; found {found}")


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string, not {type(value).__name__}")
    return value


def _filled(row: Mapping[str, Any], key: str) -> str:
    value = _text(row, key)
    if not value:
        raise ValueError(f"{key} is empty: there is nothing to learn")
    return value


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages must be a list with at least one message")
    messages = tuple(_message(index, item) for index, item in enumerate(value))
    if messages[-1].role != "assistant":
        raise ValueError(f"the last message must be the assistant's, not the {messages[-1].role}'s")
    return messages


def _message(index: int, item: Any) -> Message:
    where = f"messages[{index}]"
    if not isinstance(item, dict) or set(item) != {"role", "content"}:
        raise ValueError(f"{where} must be an object with role and content")
    if item["role"] not in ROLES:
        raise ValueError(f"{where}.role must be one of {', '.join(ROLES)}, not {item['role']!r}")
    if not isinstance(item["content"], str):
        raise ValueError(f"{where}.content must be a string, not {type(item['content']).__name__}")
    return Message(item["role"], item["content"])


def tokenize(example: Example, tokenizer: ChatTokenizer) -> Tokens:
    """The tokens of an example; only completions and assistant messages have labels.

    Raises:
        ValueError: a chat for a tokenizer without a usable chat template.
    """
    if isinstance(example, TextExample):
        return _tokenize_text(example, tokenizer)
    return _tokenize_chat(example, tokenizer)


def _tokenize_text(example: TextExample, tokenizer: ChatTokenizer) -> Tokens:
    prompt = list(tokenizer(example.prompt)["input_ids"])
    answer = list(tokenizer(example.completion, add_special_tokens=False)["input_ids"])
    if tokenizer.eos_token_id is not None:
        answer.append(tokenizer.eos_token_id)
    return Tokens(prompt + answer, [IGNORE] * len(prompt) + answer)


def _tokenize_chat(example: ChatExample, tokenizer: ChatTokenizer) -> Tokens:
    """Render up to each assistant message and with it: what the second adds is what is learned."""
    if not tokenizer.chat_template:
        raise ValueError("this base has no chat template: give prompt and completion instead of messages")
    chat = [{"role": message.role, "content": message.content} for message in example.messages]
    ids: list[int] = []
    labels: list[int] = []
    done = ""
    for index, message in enumerate(example.messages):
        if message.role != "assistant":
            continue
        asked = tokenizer.apply_chat_template(chat[:index], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(chat[: index + 1], tokenize=False, add_generation_prompt=False)
        if not (asked.startswith(done) and whole.startswith(asked)):
            raise ValueError("the chat template rewrites earlier messages: train on single answers instead")
        for text, learn in ((asked[len(done) :], False), (whole[len(asked) :], True)):
            piece = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            ids += piece
            labels += piece if learn else [IGNORE] * len(piece)
        done = whole
    return Tokens(ids, labels)
