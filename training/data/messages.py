"""Checks the messages and tools of a chat row: every fault of a row at once, in OpenAI's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.examples import ROLES, ChatExample, Message
from training.data.lines import loads
from training.data.problems import Fault

_KEYS = {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call"}
_EMPTY = ("refusal", "audio", "annotations")
"""Keys of OpenAI's answers that say nothing when they are empty."""


def check_chat(row: Mapping[str, Any], faults: list[Fault]) -> ChatExample | None:
    """The chat of a row, or None with its faults added."""
    before = len(faults)
    tools = check_tools(row, faults)
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        what = "is missing" if "messages" not in row else "must be a list with at least one message"
        faults.append(Fault("missing_messages_list", f"messages {what}"))
        return None
    found = check_messages(messages, "messages", faults)
    roles = [item.get("role") for item in messages if isinstance(item, dict)]
    if "assistant" not in roles:
        if not any(role not in ROLES for role in roles):
            reason = "no message is the assistant's: there is nothing to learn"
            faults.append(Fault("example_missing_assistant_message", reason))
    elif roles[-1] in ROLES and roles[-1] != "assistant":
        reason = f"the last message must be the assistant's, not the {roles[-1]}'s"
        faults.append(Fault("last_message_not_assistant", reason))
    elif len(faults) == before and not any(message.learned for message in found):
        reason = "every assistant message has weight 0: there is nothing to learn"
        faults.append(Fault("no_trainable_message", reason))
    return ChatExample(tuple(found), tools) if len(faults) == before else None


def check_messages(items: list[Any], where: str, faults: list[Fault]) -> list[Message]:
    """The messages that can be read. `where` names the list in the reasons."""
    found: list[Message] = []
    calls: set[str] = set()
    for index, item in enumerate(items):
        place = f"{where}[{index}]"
        if not isinstance(item, dict):
            faults.append(Fault("data_type", f"{place} must be an object, not {type_name(item)}"))
            continue
        message = _message(item, place, faults)
        if message is None:
            continue
        calls |= {str(call["id"]) for call in message.tool_calls if "id" in call}
        if message.tool_call_id is not None and message.tool_call_id not in calls:
            reason = f"{place}.tool_call_id {message.tool_call_id!r} is of no tool call before it"
            faults.append(Fault("invalid_tool_call", reason))
        found.append(message)
    return found


def _message(item: Mapping[str, Any], place: str, faults: list[Fault]) -> Message | None:
    before = len(faults)
    given = {key: value for key, value in item.items() if value is not None or key in ("role", "content")}
    given = {key: value for key, value in given.items() if key not in _EMPTY or value}
    for key in sorted(set(given) - _KEYS):
        reason = f"{place}.{key} is not a key of a message: {', '.join(sorted(_KEYS))}"
        faults.append(Fault("message_unrecognized_key", reason))
    role = given.get("role")
    if "role" not in given:
        faults.append(Fault("message_missing_key", f"{place}.role is missing"))
    elif role not in ROLES:
        reason = f"{place}.role must be one of {', '.join(ROLES)}, not {short(role)}"
        faults.append(Fault("unrecognized_role", reason))
    calls = _calls(given, place, faults)
    says = bool(given.get("tool_calls")) or "function_call" in given
    content = _content(given, role, says, place, faults)
    weight = given.get("weight", 1)
    if "weight" in given and (role != "assistant" or type(weight) is not int or weight not in (0, 1)):
        reason = f"{place}.weight must be 0 or 1, and on an assistant message only; it is {short(weight)}"
        faults.append(Fault("invalid_weight", reason))
    name = _string(given, "name", place, faults)
    call_id = _string(given, "tool_call_id", place, faults)
    if role == "tool" and call_id is None:
        faults.append(Fault("message_missing_key", f"{place}.tool_call_id is missing"))
    if len(faults) > before:
        return None
    return Message("tool" if role == "function" else str(role), content, name, calls, call_id, weight)


def _content(given: Mapping[str, Any], role: Any, calls: bool, place: str, faults: list[Fault]) -> str:
    if "content" not in given and not calls:
        faults.append(Fault("message_missing_key", f"{place}.content is missing"))
        return ""
    content = given.get("content")
    if isinstance(content, list) and content and all(map(_is_text, content)):
        content = "\n".join(part["text"] for part in content)  # as the server joins them
    if content is None and calls:
        return ""
    if not isinstance(content, str):
        reason = f"{place}.content must be a string, not {type_name(content)}"
        faults.append(Fault("missing_content", reason))
        return ""
    if not content and not calls and role not in ("tool", "function"):  # a tool may have nothing to say
        faults.append(Fault("missing_content", f"{place}.content is empty"))
    return content


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and set(part) == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    )


def _string(given: Mapping[str, Any], key: str, place: str, faults: list[Fault]) -> str | None:
    value = given.get(key)
    if value is not None and not isinstance(value, str):
        faults.append(Fault("data_type", f"{place}.{key} must be a string, not {type_name(value)}"))
    return value if isinstance(value, str) else None


def _calls(given: Mapping[str, Any], place: str, faults: list[Fault]) -> tuple[Mapping[str, Any], ...]:
    """The tool calls of a message; the older `function_call` is one without an id."""
    found = given.get("tool_calls", [])
    if "function_call" in given:
        found = [{"type": "function", "function": given["function_call"]}]
    if not isinstance(found, list):
        faults.append(
            Fault("invalid_tool_call", f"{place}.tool_calls must be a list, not {type_name(found)}")
        )
        return ()
    if found and given.get("role") != "assistant":
        faults.append(Fault("invalid_tool_call", f"{place}: only the assistant calls tools"))
    calls = []
    for index, call in enumerate(found):
        try:
            calls.append(_call(call))
        except ValueError as error:
            faults.append(Fault("invalid_tool_call", f"{place}.tool_calls[{index}]{error}"))
    return tuple(calls)


def _call(call: Any) -> Mapping[str, Any]:
    if not isinstance(call, dict) or not {"function"} <= set(call) <= {"id", "type", "function", "index"}:
        raise ValueError(" must be an object with id, type and function")
    function = call["function"]
    if call.get("type", "function") != "function":
        raise ValueError(f".type must be function, not {short(call['type'])}")
    if not isinstance(call.get("id", ""), str):
        raise ValueError(f".id must be a string, not {type_name(call['id'])}")
    if not isinstance(function, dict) or set(function) != {"name", "arguments"}:
        raise ValueError(".function must be an object with name and arguments")
    if not isinstance(function["name"], str) or not function["name"]:
        raise ValueError(".function.name must be a string that is not empty")
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = loads(arguments or "{}")
        except ValueError:
            raise ValueError(".function.arguments is not JSON") from None
    if not isinstance(arguments, dict):
        raise ValueError(".function.arguments must be an object, written as JSON in a string")
    identity = {"id": call["id"]} if "id" in call else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def check_tools(row: Mapping[str, Any], faults: list[Fault]) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row; the older `functions` are tools too."""
    found = row.get("tools")
    if found is None and isinstance(row.get("functions"), list):
        found = [{"type": "function", "function": function} for function in row["functions"]]
    if found is None:
        found = []
    if not isinstance(found, list):
        faults.append(Fault("invalid_tools", f"tools must be a list, not {type_name(found)}"))
        return ()
    for index, tool in enumerate(found):
        function = tool.get("function") if isinstance(tool, dict) else None
        whole = isinstance(function, dict) and isinstance(function.get("name"), str)
        if not whole or tool.get("type") != "function":
            reason = f"tools[{index}] must be an object with type function, and a function with a name"
            faults.append(Fault("invalid_tools", reason))
    return tuple(found)


def short(value: Any) -> str:
    """A value in a reason, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def type_name(value: Any) -> str:
    """What JSON calls the type."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
