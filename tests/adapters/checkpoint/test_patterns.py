"""The bounded matcher agrees with `re`, and gives up early where `re` would not come back."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.checkpoint.patterns import NamePattern
from adapters.errors import InvalidAdapter

NAMES = (
    "a",
    "ab.b",
    "q_proj",
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "lm_head",
    "h.3.attn.c_attn",
)

atoms = st.sampled_from(
    [
        "a",
        "b",
        r"\.",
        ".",
        r"\d",
        r"\w",
        "[a-m_]",
        "[^.]",
        "layers",
        "proj",
        "^",
        "$",
        r"\b",
        r"\B",
        "(?!b)",
        "(?=a)",
    ]
)
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "{2,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)
names = st.one_of(st.sampled_from(NAMES), st.text("ab.0_q", min_size=1, max_size=6))


@settings(max_examples=300, deadline=None)
@given(expression=expressions, name=names)
def test_agrees_with_re(expression: str, name: str) -> None:
    assert NamePattern(expression, "f").matches(name) == bool(re.fullmatch(expression, name))
    suffix = NamePattern(expression, "f", suffix=True).matches(name)
    assert suffix == bool(re.match(rf"(.*\.)?({expression})$", name))


@pytest.mark.parametrize(
    "text", ["q_proj", "self_attn.q_proj", "layers.1.q_proj", "a.b", "", "q.proj", "proj"]
)
@pytest.mark.parametrize("name", [*NAMES, "model.layers.11.q_proj", "layers.1.q_proj", "xa.b", "x.axb"])
def test_plain_names_agree_with_re(text: str, name: str) -> None:
    pattern = NamePattern(text, "f", suffix=True)
    assert pattern.plain
    assert pattern.matches(name) == bool(re.match(rf"(.*\.)?({text})$", name))


@pytest.mark.parametrize(
    "text",
    [
        "(a+)+$",
        "(.*)*x",
        "((a|aa)+)+b",
        ".*.*.*.*.*.*.*.*x",
        "(a?){500}a{500}",
        "(((a{0,900}){0,900}){0,900}){0,900}b",
    ],
)
def test_catastrophic_patterns_end_soon(text: str) -> None:
    started = time.process_time()
    try:
        answer = str(NamePattern(text, "target_modules").matches("a" * 60 + "!"))
    except InvalidAdapter as error:
        answer = str(error)
    assert answer == "False" or "too complex" in answer
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(", "not a regular expression"),
        ("a" * 2001, "a pattern of 2001 characters"),
        ("(?i)a", "sets flags"),
        ("(?i:a)", "sets flags"),
        (r"(a)\1", "uses groupref"),
        ("(?<=a)b", "uses assert"),
        ("(?>a)", "uses atomic_group"),
        ("(" * 30 + "a" + ")" * 30, "nested too deeply"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidAdapter, match="target_modules: ") as caught:
        NamePattern(text, "target_modules")
    assert message in str(caught.value)
