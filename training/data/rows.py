"""From a decoded line to an example: its format is recognised by its keys, or named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from training.data.examples import (
    Example,
    FormatName,
    LabelledText,
    LabelledTokens,
    Message,
    PlainText,
    Preference,
    TextExample,
)
from training.data.messages import check_chat, check_messages, check_tools, short, type_name
from training.data.problems import Fault, RowError, one

KEYS: dict[FormatName, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "chat": (("messages",), ("tools", "functions", "parallel_tool_calls")),
    "preference_openai": (("input", "preferred_output", "non_preferred_output"), ()),
    "preference_trl": (("prompt", "chosen", "rejected"), ("tools",)),
    "alpaca": (("instruction", "output"), ("input",)),
    "labelled_tokens": (("tokens", "labels"), ()),
    "source_target": (("source", "target"), ()),
    "prompt_completion": (("prompt", "completion"), ()),
    "labelled_text": (("text", "label"), ()),
    "text": (("text",), ()),
}
"""Of each format: the keys that a row must have, and those that it may have."""
_SIGNS: tuple[tuple[FormatName, tuple[str, ...]], ...] = (
    ("chat", ("messages",)),
    ("preference_openai", ("preferred_output", "non_preferred_output")),
    ("preference_trl", ("chosen", "rejected")),
    ("alpaca", ("instruction",)),
    ("labelled_tokens", ("tokens",)),
    ("source_target", ("source", "target")),
    ("prompt_completion", ("prompt", "completion")),
    ("labelled_text", ("label",)),
    ("text", ("text",)),
)
"""Keys of which one is enough to recognise the format; the first that fits is taken."""
ALPACA = (
    "Below is an instruction that describes a task{}. "
    "Write a response that appropriately completes the request.\n\n"
)
ALPACA_INPUT = ", paired with an input that provides further context"


def recognise(row: Any) -> FormatName | None:
    """The format that a row's keys tell of."""
    keys = set(row) if isinstance(row, dict) else set()
    return next((name for name, signs in _SIGNS if keys & set(signs)), None)


def parse_row(row: Any, format: FormatName | None = None) -> Example:
    """One example from a decoded JSON value.

    Raises:
        RowError: it is not an example; it has every reason.
    """
    if not isinstance(row, dict):
        raise one("data_type", f"expected a JSON object, not {type(row).__name__}")
    name = format or recognise(row)
    if name is None:
        found = ", ".join(map(short_key, sorted(row)[:10])) or "nothing"
        raise one(
            "missing_messages_list",
            f"expected the keys messages, or prompt and completion, or another format's; found {found}",
        )
    faults: list[Fault] = []
    example: Example | None = None
    try:
        _check_keys(row, name, faults)
        example = _PARSERS[name](row, faults)
    except RecursionError:
        faults.append(Fault("invalid_json", "nested too deeply"))
    if faults or example is None:
        raise RowError(faults)
    return example


def _check_keys(row: Mapping[str, Any], name: FormatName, faults: list[Fault]) -> None:
    required, optional = KEYS[name]
    for key in required:
        if key not in row and key != "messages":  # whose absence OpenAI has a word of its own for
            faults.append(
                Fault("missing_key", f"{key} is missing: {name} rows have {' and '.join(required)}")
            )
    for key in sorted(set(row) - {*required, *optional}):
        known = ", ".join((*required, *optional))
        faults.append(Fault("unrecognized_key", f"{short_key(key)} is not a key of {name} rows: {known}"))


def short_key(key: str) -> str:
    """A key in a reason."""
    return key if key.isidentifier() and len(key) <= 60 else short(key)


def _text(row: Mapping[str, Any], key: str, faults: list[Fault], filled: bool = True) -> str:
    """A string of the row, or "" with the fault added. `filled`: it may not be empty."""
    value: object = row.get(key, "")
    if not isinstance(value, str):
        faults.append(Fault("data_type", f"{key} must be a string, not {type(value).__name__}"))
        return ""
    if filled and not value and key in row:
        faults.append(Fault("missing_content", f"{key} is empty: there is nothing to learn"))
    return value


def _prompt_completion(row: Mapping[str, Any], faults: list[Fault]) -> Example:
    return TextExample(_text(row, "prompt", faults, filled=False), _text(row, "completion", faults))


def _source_target(row: Mapping[str, Any], faults: list[Fault]) -> Example:
    return TextExample(_text(row, "source", faults), _text(row, "target", faults))


def _alpaca(row: Mapping[str, Any], faults: list[Fault]) -> Example:
    """In the words that Alpaca was trained with."""
    instruction, output = _text(row, "instruction", faults), _text(row, "output", faults)
    context = _text(row, "input", faults, filled=False)
    prompt = ALPACA.format(ALPACA_INPUT if context else "") + f"### Instruction:\n{instruction}\n\n"
    prompt += f"### Input:\n{context}\n\n" if context else ""
    return TextExample(f"{prompt}### Response:\n", output)


def _plain(row: Mapping[str, Any], faults: list[Fault]) -> Example:
    return PlainText(_text(row, "text", faults))


def _labelled_text(row: Mapping[str, Any], faults: list[Fault]) -> Example:
    return LabelledText(_text(row, "text", faults), _label(row.get("label"), "label", faults))


def _labelled_tokens(row: Mapping[str, Any], faults: list[Fault]) -> Example:
    tokens, labels = row.get("tokens"), row.get("labels")
    if not isinstance(tokens, list) or not isinstance(labels, list):
        for key, value in (("tokens", tokens), ("labels", labels)):
            if key in row and not isinstance(value, list):
                faults.append(Fault("data_type", f"{key} must be a list, not {type_name(value)}"))
        return LabelledTokens((), ())
    if not tokens:
        faults.append(Fault("missing_content", "tokens is empty: there is nothing to learn"))
    for index, token in enumerate(tokens):
        if not isinstance(token, str) or not token.strip():
            reason = f"tokens[{index}] must be a string that is not blank, not {short(token)}"
            faults.append(Fault("data_type", reason))
    found = tuple(_label(label, f"labels[{index}]", faults) for index, label in enumerate(labels))
    if len(tokens) != len(labels):
        faults.append(Fault("length_mismatch", f"{len(tokens)} tokens, but {len(labels)} labels"))
    return LabelledTokens(tuple(map(str, tokens)), found)


def _label(value: Any, where: str, faults: list[Fault]) -> str:
    if type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        if value is not None or where != "label":
            reason = f"{where} must be a name or a whole number, not {short(value)}"
            faults.append(Fault("invalid_label", reason))
        return ""
    return value


def _preference_openai(row: Mapping[str, Any], faults: list[Fault]) -> Example:
    given = row.get("input", {})
    if not isinstance(given, dict):
        faults.append(Fault("data_type", f"input must be an object, not {type_name(given)}"))
        given = {}
    for key in sorted(set(given) - {"messages", "tools", "parallel_tool_calls"}):
        faults.append(Fault("unrecognized_key", f"input.{short_key(key)} is not a key of an input"))
    tools = check_tools(given, faults)
    if "input" in row and not given.get("messages"):
        faults.append(Fault("missing_messages_list", "input.messages is missing"))
    prompt = _messages(given.get("messages", []), "input.messages", faults)
    chosen, rejected = (_answer(row, key, faults) for key in ("preferred_output", "non_preferred_output"))
    return _preference(prompt, chosen, rejected, tools, faults)


def _preference_trl(row: Mapping[str, Any], faults: list[Fault]) -> Example:
    if any(isinstance(row.get(key), list) for key in ("prompt", "chosen", "rejected")):
        prompt = _messages(row.get("prompt", []), "prompt", faults)
        chosen, rejected = (_answer(row, key, faults) for key in ("chosen", "rejected"))
        return _preference(prompt, chosen, rejected, check_tools(row, faults), faults)
    if "tools" in row:
        faults.append(Fault("unrecognized_key", "tools go with messages, not with text"))
    texts = _text(row, "chosen", faults), _text(row, "rejected", faults)
    return _preference(_text(row, "prompt", faults, filled=False), *texts, (), faults)


def _preference(
    prompt: str | tuple[Message, ...],
    chosen: str | tuple[Message, ...],
    rejected: str | tuple[Message, ...],
    tools: tuple[Mapping[str, Any], ...],
    faults: list[Fault],
) -> Preference:
    if chosen == rejected and not faults:
        faults.append(Fault("same_answers", "both answers are the same: neither can be preferred"))
    return Preference(prompt, chosen, rejected, tools)


def _messages(value: Any, where: str, faults: list[Fault]) -> tuple[Message, ...]:
    if not isinstance(value, list):
        faults.append(Fault("data_type", f"{where} must be a list of messages, not {type_name(value)}"))
        return ()
    return tuple(check_messages(value, where, faults))


def _answer(row: Mapping[str, Any], key: str, faults: list[Fault]) -> tuple[Message, ...]:
    """The messages that are compared; the last one is the assistant's."""
    if key not in row:
        return ()
    before = len(faults)
    found = _messages(row[key], key, faults)
    if len(faults) == before and not found:
        faults.append(Fault("missing_content", f"{key} has no message"))
    elif len(faults) == before and found[-1].role != "assistant":
        reason = f"the last message of {key} must be the assistant's, not the {found[-1].role}'s"
        faults.append(Fault("last_message_not_assistant", reason))
    return found


_PARSERS: dict[FormatName, Callable[[Mapping[str, Any], list[Fault]], Example | None]] = {
    "chat": check_chat,
    "preference_openai": _preference_openai,
    "preference_trl": _preference_trl,
    "alpaca": _alpaca,
    "labelled_tokens": _labelled_tokens,
    "source_target": _source_target,
    "prompt_completion": _prompt_completion,
    "labelled_text": _labelled_text,
    "text": _plain,
}
