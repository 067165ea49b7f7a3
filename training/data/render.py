"""A chat as the text that the server would show the model, and which of its characters are learned.

A template that marks what the assistant says (`{% generation %}`) is asked for that. Of any other, the chat
is rendered up to each answer, ready for it, and with it: what the second adds is learned. Both learn the end
of a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.data.examples import ChatExample, Message
from training.data.problems import RowError, one
from training.data.tokens import ChatTokenizer

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text in pieces, as they follow each other; `learned` says which of them are."""

    pieces: tuple[str, ...]
    learned: tuple[bool, ...]


def render(example: ChatExample, tokenizer: ChatTokenizer) -> list[Rendered]:
    """The text of a chat; of a template that rewrites earlier messages, a text for each learned answer.

    Raises:
        RowError: there is no chat template, or it can't render this chat.
    """
    if not tokenizer.chat_template:
        reason = "this base has no chat template: give prompt and completion instead of messages"
        raise one("no_chat_template", reason)
    tools = [dict(tool) for tool in example.tools] or None
    try:
        template = str(tokenizer.get_chat_template(tools=tools))
        chat = conversation(example.messages, template)
        if _MARK.search(template):
            return [_by_marks(example, chat, tools, template, tokenizer)]
        return _by_prefixes(example, chat, tools, tokenizer)
    except RowError:
        raise
    except Exception as error:  # a template is a program of someone else's
        raise one("template_refused", f"the base's chat template refused it: {error}") from None


def conversation(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """The messages as templates want them: the same as the server makes of a request."""
    # Templates that don't know OpenAI's newer role would print it raw or refuse it.
    developer = "developer" if "developer" in template else "system"
    return [
        {
            "role": developer if message.role == "developer" else message.role,
            "content": message.content,
            **({"name": message.name} if message.name else {}),
            **({"tool_calls": [dict(call) for call in message.tool_calls]} if message.tool_calls else {}),
            **({"tool_call_id": message.tool_call_id} if message.tool_call_id else {}),
        }
        for message in messages
    ]


def _by_marks(
    example: ChatExample, chat: list[dict[str, Any]], tools: Any, template: str, tokenizer: ChatTokenizer
) -> Rendered:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, marks = render_jinja_template(
        [chat],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    text, spans = str(texts[0]), list(marks[0])
    answers = [message for message in example.messages if message.role == "assistant"]
    if len(spans) == len(answers):
        spans = [span for span, answer in zip(spans, answers, strict=True) if answer.learned]
    elif not all(answer.learned for answer in answers):
        reason = (
            f"its template marks {len(spans)} spans for {len(answers)} answers: weight 0 can't be applied"
        )
        raise one("template_refused", reason)
    end = tokenizer.eos_token or "\0"
    return _pieces(text, [(start, stop + len(end) * text.startswith(end, stop)) for start, stop in spans])


def _by_prefixes(
    example: ChatExample, chat: list[dict[str, Any]], tools: Any, tokenizer: ChatTokenizer
) -> list[Rendered]:
    ends = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    found: list[tuple[str, tuple[int, int]]] = []
    for index, message in enumerate(example.messages):
        if not message.learned:
            continue
        if not index:
            raise one("template_refused", "a chat can't begin with the assistant's message")
        asked = tokenizer.apply_chat_template(
            chat[:index], tools=tools, tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(
            chat[: index + 1], tools=tools, tokenize=False, add_generation_prompt=False
        )
        if not whole.startswith(asked):
            reason = (
                "the base's chat template renders an answer otherwise than it asks for it: give prompt and "
            )
            raise one("template_refused", f"{reason}completion instead of messages")
        # What a template writes after the token that ends a turn is never generated.
        said = whole.rstrip() if whole.rstrip().endswith(tuple(ends)) else whole
        found.append((whole, (len(asked), max(len(said), len(asked)))))
    if not found:
        raise one("no_trainable_message", "every assistant message has weight 0: there is nothing to learn")
    last = found[-1][0]
    if all(last.startswith(whole) for whole, _ in found):
        return [_pieces(last, [span for _, span in found])]
    return [_pieces(whole, [span]) for whole, span in found]


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> Rendered:
    """The text cut at the spans; what comes after the last of them is left out."""
    pieces: list[str] = []
    learned: list[bool] = []
    done = 0
    for start, stop in spans:
        pieces += [text[done:start], text[start:stop]]
        learned += [False, True]
        done = stop
    return Rendered(tuple(pieces), tuple(learned))
