"""JSON objects from strangers: no duplicate keys, no NaN, no surprises for whoever reads them next."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from adapters.errors import InvalidAdapter


def parse_object(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Duplicate keys are refused because two readers may each take a different one of them.

    Raises:
        InvalidAdapter: not UTF-8, not JSON, not an object, or a key given twice; `what` names the source.
    """
    value = parse_json(text, what)
    if not isinstance(value, dict):
        raise InvalidAdapter(f"{what} must be a JSON object, not {type(value).__name__}")
    return value


def parse_json(text: bytes, what: str) -> Any:
    """Any JSON value, as strict as `parse_object`.

    Raises:
        InvalidAdapter: not UTF-8, not JSON, or a key given twice.
    """
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise InvalidAdapter(f"{what} is not UTF-8 text") from None
    except RecursionError:
        raise InvalidAdapter(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise InvalidAdapter(f"{what} is not valid JSON: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r:.200} is given twice")
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
