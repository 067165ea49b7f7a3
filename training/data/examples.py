"""What a line of training data can be: plain values, checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""`function` is OpenAI's older name for `tool`, which it becomes."""
FormatName = Literal[
    "chat",
    "prompt_completion",
    "alpaca",
    "text",
    "labelled_text",
    "labelled_tokens",
    "preference_openai",
    "preference_trl",
    "source_target",
]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Attributes:
        content: empty where an assistant only calls tools.
        tool_calls: `{"id", "type": "function", "function": {"name", "arguments"}}`, the arguments as an
            object: chat templates want them so.
        weight: of an assistant message: 1 is learned, 0 is only read.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    weight: int = 1

    @property
    def learned(self) -> bool:
        """Whether the loss counts it."""
        return self.role == "assistant" and self.weight > 0


@dataclass(frozen=True, slots=True)
class TextExample:
    """A prompt and the completion to learn; of an encoder-decoder: a source and its target."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A chat; every assistant message with weight 1 is to be learned. `tools`: as the API takes them."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text to learn as a whole."""

    text: str


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and its class."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class LabelledTokens:
    """Words and the class of each; as many labels as words."""

    tokens: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, the first the better one. All three are text, or all are messages."""

    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


Example = TextExample | ChatExample | PlainText | LabelledText | LabelledTokens | Preference
