"""The body of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from server.api.schemas import (
    GenerationFields,
    Ignored,
    ResponseFormat,
    Strict,
    Unsupported,
    check_logprobs,
    invalid,
    string_or_list,
)
from server.settings import Settings

MAX_MESSAGES = 4096


class TextPart(Strict):
    """One part of a message's content; text is the only kind so far."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[TextPart], Field(min_length=1), Tag("<list>")],
    Discriminator(string_or_list),
]


class Message(Strict):
    """One message of the conversation. Tool calls and their results are not built yet."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = Field(None, max_length=64)
    refusal: Unsupported = None
    audio: Unsupported = None
    annotations: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Unsupported = None
    tool_call_id: Unsupported = None

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by a line break, as vLLM does."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatRequest(GenerationFields):
    """A conversation to continue."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = Field(None, max_length=1)
    tool_choice: Literal["none"] | None = None

    parallel_tool_calls: Ignored = None

    tools: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
    moderation: Unsupported = None

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens`, or its older name; None is the rest of the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self, settings: Settings, vocab_size: int) -> None:
        """See `GenerationFields.check`."""
        super().check(settings, vocab_size)
        if self.max_tokens == 0:
            raise invalid("max_tokens", "at least 1")
        if self.max_tokens is not None and self.max_tokens != self.token_limit:
            raise invalid("max_completion_tokens", "contradicts max_tokens; send one of them")
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "only allowed when logprobs is true")
        check_logprobs(self.top_logprobs or 0, settings, "top_logprobs")
