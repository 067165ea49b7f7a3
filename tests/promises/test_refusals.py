"""Every message that refuses an adapter is named by a test; each refused field and tuner has its own line."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.checkpoint import patterns
from adapters.checkpoint.config import parse_config
from adapters.checkpoint.config_fields import ADALORA_REFUSED, REFUSED
from adapters.checkpoint.patterns import NamePattern
from adapters.checkpoint.variants.table import READERS, tuner
from adapters.checkpoint.variants.unsupported import UNSUPPORTED
from adapters.delta import AdapterWeights, EmbeddingDelta, ModuleDelta
from adapters.errors import AdapterError
from adapters.registry.lineage import quantization_beside
from adapters.registry.names import check_new_name, parse_ref
from tests.kit import LIMITS, Families

ROOT = Path(__file__).parents[2]
ERRORS = {"fault", "InvalidAdapter", "AdapterTooLarge", "AdapterConflict", "InvalidName"}
LEAST = 16
"""How many characters of its own words in a row name a message; all of them, if it has fewer."""


@dataclass(frozen=True)
class Refusal:
    """A place in the code where an error is made, and the words of its message that are always the same."""

    where: str
    words: tuple[str, ...]

    @property
    def named(self) -> bool:
        own = [words for words in self.words if len(words) >= LEAST] or sorted(self.words, key=len)[-1:]
        return any(
            words[start : start + LEAST] in named_texts()
            for words in own
            for start in range(max(1, len(words) - LEAST + 1))
        )


def refusals() -> list[Refusal]:
    """All in `adapters/`, but for those that pass on another's words."""
    found = []
    for path in sorted((ROOT / "adapters").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                words = [text.strip() for argument in node.args[:1] for text in strings(argument)]
                own = tuple(text for text in words if len(text) > 6)
                if own:
                    found.append(Refusal(f"{path.relative_to(ROOT)}:{node.lineno}", own))
    return found


def strings(node: ast.AST) -> list[str]:
    """The texts in a piece of code, but for how numbers are to be shown."""
    return [
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


@cache
def named_texts() -> str:
    """Every text in a test, without what is special in a regular expression."""
    texts = [text for path in (ROOT / "tests").rglob("*.py") for text in strings(ast.parse(path.read_text()))]
    return "\0".join(text.replace("\\", "") for text in texts)


def test_every_message_is_named_by_a_test() -> None:
    assert len(refusals()) > 150
    assert [refusal for refusal in refusals() if not refusal.named] == []


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(AdapterError) as caught:
        call()
    return str(caught.value)


def config(peft_type: str, **fields: object) -> Callable[[], object]:
    raw = {"peft_type": peft_type, "target_modules": ["q_proj"], "feedforward_modules": [], **fields}
    return lambda: parse_config(json.dumps(raw).encode(), LIMITS)


FIELDS: list[tuple[str, str, str]] = [
    *(("LORA", field, advice) for field, advice in REFUSED.items()),
    *(("ADALORA", field, advice) for field, advice in ADALORA_REFUSED.items()),
    *((kind, field, advice) for kind in READERS for field, advice in tuner(kind).REFUSED.items()),
]


@pytest.mark.parametrize(("peft_type", "field", "advice"), FIELDS)
def test_refused_fields(peft_type: str, field: str, advice: str) -> None:
    fields: dict[str, Any] = {} if peft_type in ("LORA", "ADALORA") else {"r": 2}
    raw = {"peft_type": peft_type, "target_modules": ["q_proj"], **fields, field: [1]}
    message = refused(lambda: parse_config(json.dumps(raw).encode(), LIMITS))
    assert message == f"adapter_config.json: {field}: {advice}"


@pytest.mark.parametrize("peft_type", sorted(UNSUPPORTED))
def test_refused_tuners(peft_type: str) -> None:
    reason = UNSUPPORTED[peft_type]
    message = refused(config(peft_type))
    assert message == f"adapter_config.json: peft_type {peft_type!r} is not supported: {reason}"


CASES: list[tuple[Callable[[], object], str]] = [
    (
        lambda: parse_ref("A@"),
        "'A@' is not an adapter name such as 'name', 'name@3', 'name@prod' or 'tenant/name'",
    ),
    (lambda: check_new_name("Tone", "b"), "adapter name 'Tone' has capital letters; use 'tone'"),
    (
        lambda: check_new_name("a b", "b"),
        "must be 1 to 63 of a-z, 0-9, '.', '_' and '-', and begin with a letter or digit",
    ),
    (lambda: check_new_name("latest", "b"), "adapter name 'latest' is reserved; choose another"),
    (lambda: NamePattern("a" * 2001, "f"), "f: a pattern of 2001 characters; the most is 2000"),
    (
        config("LORA", rank_pattern={f"m{i}": 1 for i in range(4097)}),
        "rank_pattern has 4097 entries; the most is 4096",
    ),
    (
        config("LORA", new_option=1),
        "unknown field 'new_option' with value 1; remove it if it has no effect",
    ),
]


@pytest.mark.parametrize(("call", "message"), CASES)
def test_messages_of_names_and_patterns(call: Callable[[], object], message: str) -> None:
    assert message in refused(call)


def test_a_pattern_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MAX_STEPS", 1)
    message = refused(lambda: NamePattern("(a|b)*c", "f").matches("ababab"))
    assert message == "f: '(a|b)*c' is too complex; name the modules in a list"


def test_a_lineage_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "lineage.json").write_text(" " * (1 << 24))
    assert "lineage.json is larger than " in refused(lambda: quantization_beside(tmp_path))


def test_messages_of_records_that_do_not_fit(families: Families) -> None:
    model = families("llama").model
    head, table = "lm_head", "model.embed_tokens"
    linear = model.spec.linears[head]
    delta = ModuleDelta(torch.zeros(1, linear.in_features), torch.zeros(linear.out_features, 1), 1.0)
    own = {"weight": torch.zeros(linear.out_features, linear.in_features)}
    both = AdapterWeights("d", {head: delta}, replaced={head: own})
    odd = AdapterWeights("d", {}, {table: EmbeddingDelta(torch.zeros(2, 5), torch.zeros(48, 2))})
    assert f"both replaces {head} and adds to it; keep one of the two" in refused(
        lambda: model.batch.place(both)
    )
    assert f"adds [48, 2] x [2, 5] to {table}, which needs [48, r] x [r, 96]" in refused(
        lambda: model.batch.place(odd)
    )
