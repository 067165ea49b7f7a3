"""A chat as the text that the server would show the model, and which of its characters are learned.

A template that marks what the assistant says (`{% generation %}`) is asked for that. Of any other, the chat
is rendered up to each answer, ready for it, and with it: what the second adds is learned. In both, the token
that ends a turn is learned too.
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
    """A text in pieces, as they follow each other; `learned` says which of them are.

    Attributes:
        ended: a special token ends the last piece, but for white space.
    """

    pieces: tuple[str, ...]
    learned: tuple[bool, ...]
    ended: bool


def render(example: ChatExample, tokenizer: ChatTokenizer) -> list[Rendered]:
    """The text of a chat; of a template that rewrites earlier messages, a text for each learned answer.

    Raises:
        RowError: there is no chat template, or it can't render this chat.
    """
    if not tokenizer.chat_template:
        reason = "this base has no chat template: give prompt and completion instead of messages"
        raise one("no_chat_template", reason)
    tools = [dict(tool) for tool in example.tools] or None
    specials = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    try:
        template = str(tokenizer.get_chat_template(tools=tools))
        _check_tools(example, template)
        chat = conversation(example.messages, template)
        if _MARK.search(template):
            return [_by_marks(example, chat, tools, template, specials, tokenizer)]
        return _by_prefixes(example, chat, tools, specials, tokenizer)
    except RowError:
        raise
    except Exception as error:  # a template is a program of someone else's
        raise one("template_refused", f"the base's chat template refused it: {error}") from None


def _check_tools(example: ChatExample, template: str) -> None:
    """Whether the template knows tools, if there are any: else an empty answer would be learned."""
    called = any(message.tool_calls for message in example.messages)
    if (called and "tool_calls" not in template) or (example.tools and "tools" not in template):
        reason = "the base's chat template knows no tools: it would leave the tools and their calls out"
        raise one("template_without_tools", reason)


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
    example: ChatExample,
    chat: list[dict[str, Any]],
    tools: Any,
    template: str,
    specials: tuple[str, ...],
    tokenizer: ChatTokenizer,
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
    spans = [(start, _end(text, start, stop, specials)) for start, stop in spans]
    return _pieces(text, spans, specials)


def _end(text: str, start: int, stop: int, specials: tuple[str, ...]) -> int:
    """Where a marked answer ends, with the token that ends the turn where only the text is marked."""
    if text[start:stop].rstrip().endswith(specials):
        return stop
    return stop + max((len(token) for token in specials if text.startswith(token, stop)), default=0)


def _by_prefixes(
    example: ChatExample,
    chat: list[dict[str, Any]],
    tools: Any,
    specials: tuple[str, ...],
    tokenizer: ChatTokenizer,
) -> list[Rendered]:
    def text_of(count: int, asked: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                chat[:count], tools=tools, tokenize=False, add_generation_prompt=asked
            )
        )

    found: list[tuple[str, tuple[int, int]]] = []
    for index, message in enumerate(example.messages):
        if not message.learned:
            continue
        if not index:
            raise one("template_refused", "a chat can't begin with the assistant's message")
        asked, whole = text_of(index, True), text_of(index + 1, False)
        if not whole.startswith(asked):
            # Such as a <think> that only asks: the answer goes behind what the server will ask with.
            same = _shared(asked, whole)
            if same < len(text_of(index, False)):
                reason = "the base's chat template rewrites earlier messages when it asks for an answer"
                raise one("template_refused", f"{reason}: give prompt and completion instead")
            whole = asked + whole[same:]
        # What a template writes after the token that ends a turn is never generated.
        said = whole.rstrip() if whole.rstrip().endswith(specials) else whole
        found.append((whole, (len(asked), max(len(said), len(asked)))))
    if not found:
        raise one("no_trainable_message", "every assistant message has weight 0: there is nothing to learn")
    last = found[-1][0]
    if all(last.startswith(whole) for whole, _ in found):
        return [_pieces(last, [span for _, span in found], specials)]
    return [_pieces(whole, [span], specials) for whole, span in found]


def _shared(first: str, second: str) -> int:
    """Characters that both begin with."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), len(second))


def _pieces(text: str, spans: Sequence[tuple[int, int]], specials: tuple[str, ...]) -> Rendered:
    """The text cut at the spans; what comes after the last of them is left out."""
    pieces: list[str] = []
    learned: list[bool] = []
    done = 0
    for start, stop in spans:
        pieces += [text[done:start], text[start:stop]]
        learned += [False, True]
        done = stop
    return Rendered(tuple(pieces), tuple(learned), text[:done].rstrip().endswith(specials))
