"""Regular expressions from strangers, matched against module names in bounded time.

PEFT's `target_modules`, `exclude_modules`, `rank_pattern` and `alpha_pattern` may be any Python regular
expression, and Python's own matcher can take years on one of 20 characters. Here the same syntax is parsed by
Python's parser, and matched by keeping the set of all positions reached so far (Thompson, CACM 11(6), 1968)
as the bits of one integer, so that nothing is ever tried twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from adapters.errors import InvalidAdapter

# The parser's modules are private, but have had this shape since Python 3.11; the tests compare it with `re`.
op: Any = import_module("re._constants")
_parser: Any = import_module("re._parser")

MAX_LENGTH = 2000
MAX_DEPTH = 20
MAX_STEPS = 5000
_PLAIN = re.compile(r"[A-Za-z0-9_.]*")
_WRAPPERS = {op.SUBPATTERN, op.MAX_REPEAT, op.MIN_REPEAT, op.ASSERT, op.ASSERT_NOT}
_LEAVES = {op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN, op.AT}


class NamePattern:
    """A regular expression that whole module names are tested against.

    Args:
        text: Python syntax; groups, classes, repeats, anchors and lookahead. Back-references, lookbehind,
            atomic groups and flags are refused.
        field: where `text` came from, for errors.
        suffix: match whole names, or what follows any dot too: PEFT's `(.*\\.)?(text)$`.

    Attributes:
        plain: whether the pattern is only a name, which costs next to nothing to match.

    Raises:
        InvalidAdapter: `text` is not a pattern that can be matched in bounded time.
    """

    def __init__(self, text: str, field: str, *, suffix: bool = False) -> None:
        self.text, self._field, self._suffix = text, field, suffix
        if len(text) > MAX_LENGTH:
            raise InvalidAdapter(f"{field}: a pattern of {len(text)} characters; the most is {MAX_LENGTH}")
        self.plain = suffix and _PLAIN.fullmatch(text) is not None
        if self.plain:
            return
        try:
            parsed = _parser.parse(rf"(.*\.)?({text})" if suffix else text)
        except (re.error, OverflowError, RecursionError) as error:
            raise InvalidAdapter(f"{field}: {text!r:.200} is not a regular expression: {error}") from None
        if parsed.state.flags != re.UNICODE.value:
            raise InvalidAdapter(
                f"{field}: {text!r:.200} sets flags, which are not supported; write it without"
            )
        self._check(parsed, 0)
        self._tree = parsed

    def _check(self, tree: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidAdapter(f"{self._field}: {self.text!r:.200} is nested too deeply")
        for code, value in tree:
            if code is op.BRANCH:
                for branch in value[1]:
                    self._check(branch, depth + 1)
            elif code in _WRAPPERS and not (code in (op.ASSERT, op.ASSERT_NOT) and value[0] < 0):
                if code is op.SUBPATTERN and (value[1] or value[2]):
                    raise InvalidAdapter(
                        f"{self._field}: {self.text!r:.200} sets flags, which are not supported"
                    )
                self._check(value[-1], depth + 1)
            elif code not in _LEAVES:
                raise InvalidAdapter(
                    f"{self._field}: {self.text!r:.200} uses {str(code).lower()}, which is not supported"
                )

    def matches(self, name: str) -> bool:
        """Whether the whole of `name` matches.

        Raises:
            InvalidAdapter: the pattern takes more than `MAX_STEPS` steps.
        """
        if self.plain:
            return self._matches_plain(name)
        return bool(_Match(self, name).ends(self._tree, 1) >> len(name))

    def _matches_plain(self, name: str) -> bool:
        """Fast path for a pattern of name characters only, whose dots still stand for any character."""
        text, start = self.text, len(name) - len(self.text)
        if start < 0 or (start > 0 and name[start - 1] != "."):
            return False
        tail = name[start:]
        return tail == text or ("." in text and all(p in (".", c) for p, c in zip(text, tail, strict=True)))

    def too_slow(self) -> InvalidAdapter:
        return InvalidAdapter(f"{self._field}: {self.text!r:.200} is too complex; name the modules in a list")


class _Match:
    """One pattern on one name. A position between characters is a bit; a set of positions is an `int`."""

    def __init__(self, pattern: NamePattern, name: str) -> None:
        self._pattern, self._name, self._steps = pattern, name, 0
        self._at: dict[str, int] = {}
        for index, char in enumerate(name):
            self._at[char] = self._at.get(char, 0) | 1 << index
        self._all = (1 << len(name)) - 1

    def ends(self, tree: Any, starts: int) -> int:
        """Where matches of `tree` that begin at `starts` can end."""
        for code, value in tree:
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise self._pattern.too_slow()
            starts = self._step(code, value, starts)
            if not starts:
                break
        return starts

    def _step(self, code: Any, value: Any, starts: int) -> int:
        if code is op.BRANCH:
            reached = 0
            for branch in value[1]:
                reached |= self.ends(branch, starts)
            return reached
        if code is op.SUBPATTERN:
            return self.ends(value[-1], starts)
        if code in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, tree = value
            return self._repeat(least, most, tree, starts)
        if code in (op.ASSERT, op.ASSERT_NOT):
            wanted = code is op.ASSERT
            bits = (1 << index for index in range(starts.bit_length()) if starts >> index & 1)
            return sum(bit for bit in bits if bool(self.ends(value[1], bit)) is wanted)
        if code is op.AT:
            return starts & self._anchors(value)
        return (starts & self._characters(code, value)) << 1

    def _repeat(self, least: int, most: int, tree: Any, starts: int) -> int:
        for _ in range(least):
            before, starts = starts, self.ends(tree, starts)
            if starts == before:
                break
        if most is op.MAXREPEAT and len(tree) == 1 and tree[0][0] is op.ANY:
            return (self._all << 1 | 1) & -(starts & -starts) if starts else 0
        reached = fresh = starts
        for _ in range(min(most - least, len(self._name) + 1)):
            fresh = self.ends(tree, fresh) & ~reached
            if not fresh:
                break
            reached |= fresh
        return reached

    def _characters(self, code: Any, value: Any) -> int:
        """The positions before a character that the one-character node accepts."""
        if code is op.ANY:
            return self._all & ~self._at.get("\n", 0)
        if code is op.LITERAL:
            return self._at.get(chr(value), 0)
        if code is op.NOT_LITERAL:
            return self._all & ~self._at.get(chr(value), 0)
        return sum(mask for char, mask in self._at.items() if _in_class(char, value))

    def _anchors(self, value: Any) -> int:
        if value in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return 1
        if value in (op.AT_END, op.AT_END_STRING):
            return 1 << len(self._name)
        words = [False, *(_is_word(char) for char in self._name), False]
        boundaries = sum(1 << i for i in range(len(words) - 1) if words[i] != words[i + 1])
        return boundaries if value is op.AT_BOUNDARY else ~boundaries & (self._all << 1 | 1)


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_NOT_DIGIT: lambda char: not char.isdecimal(),
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_NOT_SPACE: lambda char: not char.isspace(),
    op.CATEGORY_WORD: _is_word,
    op.CATEGORY_NOT_WORD: lambda char: not _is_word(char),
}


def _in_class(char: str, items: Any) -> bool:
    """Whether a character class such as `[a-z_]` holds `char`."""
    negated = items[0][0] is op.NEGATE
    for code, value in items[1:] if negated else items:
        if code is op.LITERAL:
            found = ord(char) == value
        elif code is op.RANGE:
            found = value[0] <= ord(char) <= value[1]
        else:
            found = _CATEGORIES[value](char)
        if found:
            return not negated
    return negated
