"""From text to token ids, within the model's context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio.to_thread
from jinja2 import TemplateError

from server.api.chat_schema import Message
from server.api.context import ServerContext
from server.api.errors import APIError
from server.api.schemas import invalid

SHORT = 4096
"""Texts up to this many characters are handled in place: the thread would cost more than the work."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as the engine gets it, and as `echo` shows it.

    `offsets`: where each token begins and ends in `text`, in characters, if that was asked for.
    """

    token_ids: tuple[int, ...]
    text: str
    offsets: tuple[tuple[int, int], ...] | None = None


async def text_prompt(
    context: ServerContext, text: str, special: bool, param: str, *, offsets: bool = False, among: int = 0
) -> Prompt:
    """Tokenize `text`; `special` lets the tokenizer add its own tokens, such as the one for the beginning.

    `among`: characters of all texts of the request; many short ones are as much work as a long one.
    """
    check_characters(context, len(text), param)

    def encode() -> Prompt:
        if not offsets:
            return Prompt(tuple(context.tokenizer.encode(text, add_special_tokens=special)), text)
        found = context.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return Prompt(tuple(found["input_ids"]), text, tuple(found["offset_mapping"]))

    prompt = await _run(context, encode, max(len(text), among))
    if not prompt.token_ids:
        raise invalid(param, "the prompt has no tokens")
    return prompt


def token_prompt(context: ServerContext, token_ids: list[int], echo: bool) -> Prompt:
    """A prompt that is token ids already; its text is only needed for `echo`."""
    fits = len(token_ids) <= context.engine.max_model_len
    return Prompt(tuple(token_ids), context.tokenizer.decode(token_ids) if echo and fits else "")


async def chat_prompt(context: ServerContext, messages: list[Message]) -> Prompt:
    """Render the conversation through the model's chat template, ready for the assistant's answer."""
    if not context.tokenizer.chat_template:
        message = f"The model `{context.base.name}` has no chat template; use /v1/completions."
        raise APIError(400, message, param="messages", code="no_chat_template")
    count = sum(len(message.text) for message in messages)
    check_characters(context, count, "messages")
    # Templates that don't know OpenAI's newer role would print it raw or refuse it.
    developer = "developer" if "developer" in str(context.tokenizer.chat_template) else "system"
    conversation = []
    for item in messages:
        role = developer if item.role == "developer" else item.role
        name = {"name": item.name} if item.name else {}
        conversation.append({"role": role, "content": item.text, **name})

    def render() -> str:
        return context.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)

    try:
        text = await _run(context, render, count)
    except TemplateError as error:
        raise invalid("messages", f"the model's chat template refused them: {error}") from None
    return await text_prompt(context, text, special=False, param="messages")


def check_characters(context: ServerContext, count: int, param: str) -> None:
    """Refuse before tokenizing what can't fit whatever its tokens are."""
    if count > context.max_prompt_chars:
        raise _too_long(
            f"This model's maximum context length is {context.engine.max_model_len} tokens. However, your "
            f"{param} has {count} characters, which can't fit. Please reduce its length.",
            param,
        )


def fit(context: ServerContext, prompt: Prompt, wanted: int | None, param: str) -> int:
    """How many tokens may be generated: `wanted`, or the rest of the context; an error if they don't fit."""
    limit, used = context.engine.max_model_len, len(prompt.token_ids)
    least = 1 if wanted is None else wanted
    if used + least <= limit:
        return limit - used if wanted is None else wanted
    raise _too_long(
        f"This model's maximum context length is {limit} tokens. However, you requested {used + least} "
        f"tokens ({used} in the {param}, {least} in the completion). Please reduce the length of the {param} "
        "or completion.",
        param,
    )


def fit_whole(context: ServerContext, prompt: Prompt, param: str) -> None:
    """An error for a prompt that does not fit into the context although nothing is generated."""
    limit, used = context.engine.max_model_len, len(prompt.token_ids)
    if used > limit:
        raise _too_long(
            f"This model's maximum context length is {limit} tokens. However, your {param} has {used}. "
            "Please reduce its length.",
            param,
        )


async def _run(context: ServerContext, work: Callable[[], Result], characters: int) -> Result:
    if characters <= SHORT:
        return work()
    return await anyio.to_thread.run_sync(work, limiter=context.tokenizing)


def _too_long(message: str, param: str) -> APIError:
    return APIError(400, message, param=param.partition("[")[0], code="context_length_exceeded")
