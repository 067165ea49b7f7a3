"""The check of a file: each error by line and kind, warnings, figures, advice; and no bytes that break it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.data.tokenizers import CHATML, of_bytes
from training.base.tokenizer import build_tokenizer
from training.data import DataError, DataReport, check_file, encode, read_jsonl
from training.data.findings import Finding
from training.data.rows import KEYS as FORMATS

TOKENIZER = build_tokenizer()
ROLES = ("system", "user", "assistant")


def chat(*contents: str) -> dict[str, Any]:
    roles = ROLES[-len(contents) :]
    return {
        "messages": [
            {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
        ]
    }


def write(folder: Path, rows: Sequence[Any], name: str = "data.jsonl") -> Path:
    """Bytes as they are, all else as JSON."""
    path = folder / name
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def lines(findings: Sequence[Finding]) -> Mapping[str, list[int]]:
    """Kind to the lines that have it."""
    return {finding.kind: [problem.line for problem in finding.problems] for finding in findings}


def checked(folder: Path, rows: Sequence[Any], **options: Any) -> DataReport:
    return check_file(write(folder, rows), tokenizer=TOKENIZER, max_length=64, **options)


def test_a_file_that_is_right_has_no_error(tmp_path: Path) -> None:
    report = checked(tmp_path, [chat("s", f"u{number}", "a") for number in range(12)])
    assert report.ok
    assert (report.file, report.format, report.task) == ("data.jsonl", "chat", "CAUSAL_LM")
    assert (report.errors, report.warnings, report.summary()) == ((), (), "")


def test_every_error_is_found_at_once_with_its_line(tmp_path: Path) -> None:
    report = checked(
        tmp_path,
        [
            chat("s", "u", "a"),
            b"{",
            b"\xff\xfe",
            b"",
            [1],
            {"messages": []},
            {"messages": [{"content": "u"}, {"role": "assistant", "content": "a"}]},
            {"messages": [{"role": "user", "content": "u", "x": 1}, {"role": "assistant", "content": "a"}]},
            {"messages": [{"role": "bot", "content": "u"}, {"role": "assistant", "content": "a"}]},
            {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": None}]},
            {"messages": [{"role": "user", "content": "u"}]},
            chat("s", "u" * 70, "a"),
            {"prompt": "u", "completion": "a"},
            {
                "messages": [
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": "a", "weight": 2},
                ]
            },
        ],
    )
    assert not report.ok
    assert lines(report.errors) == {
        "invalid_json": [2],
        "invalid_utf8": [3],
        "data_type": [5],
        "missing_messages_list": [6],
        "message_missing_key": [7],
        "message_unrecognized_key": [8],
        "unrecognized_role": [9],
        "missing_content": [10],
        "example_missing_assistant_message": [11],
        "no_trainable_tokens": [12],
        "mixed_formats": [13],
        "invalid_weight": [14],
    }
    assert report.summary().startswith("data.jsonl line 2: not JSON: Expecting property name")
    assert report.summary().endswith("; and 9 more")


def test_the_reader_refuses_what_the_check_refuses(tmp_path: Path) -> None:
    """But for what only a tokenizer tells: training skips such a row."""
    path = write(tmp_path, [chat("u", "a"), b"{", {"prompt": "u", "completion": "a"}])
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    report = check_file(path)
    assert {(problem.kind, problem.line) for problem in caught.value.problems} == {
        (kind, line) for kind, found in lines(report.errors).items() for line in found
    }


@pytest.mark.parametrize("text", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_says_so(tmp_path: Path, text: bytes) -> None:
    report = checked(tmp_path, [text])
    assert lines(report.errors) == {"empty_file": [1]}
    assert (report.format, report.advice) == (None, ())


def test_each_kind_is_counted_and_its_first_lines_are_named(tmp_path: Path) -> None:
    rows = [chat("s", f"u{number}", "a") for number in range(300)] + [b"{"] * 100
    rows += [{"text": str(number)} for number in range(50)]
    report = checked(tmp_path, rows)
    assert [(finding.kind, finding.count) for finding in report.errors] == [
        ("invalid_json", 100),
        ("mixed_formats", 50),
    ]
    assert lines(report.errors) == {
        "invalid_json": list(range(301, 311)),
        "mixed_formats": list(range(401, 411)),
    }


def test_rows_that_are_there_twice(tmp_path: Path) -> None:
    rows = [chat("s", "one two", "a"), chat("s", "x", "a"), chat("s", "one two", "a"), b""]
    report = checked(tmp_path, [*rows, chat("s", "One  two ", "a"), chat("s", "x", "b")])
    assert report.ok
    assert lines(report.warnings) == {"duplicate_rows": [3], "duplicate_rows_normalised": [5]}
    assert [finding.problems[0].reason for finding in report.warnings] == [
        "the same as line 1",
        "differs only in case or spaces from line 1",
    ]


def test_a_thousand_duplicates_are_counted_and_ten_named(tmp_path: Path) -> None:
    (finding,) = checked(tmp_path, [chat("s", "u", "a")] * 1001).warnings
    assert (finding.kind, finding.count, len(finding.problems)) == ("duplicate_rows", 1000, 10)


def test_what_is_trained_and_validated(tmp_path: Path) -> None:
    train = [chat("s", "one", "a"), chat("s", "two", "a")]
    other = write(
        tmp_path, [chat("s", "three", "a"), chat("s", "two", "a"), chat("s", "ONE", "a"), b"{"], "v"
    )
    report = checked(tmp_path, train, validation=other)
    assert lines(report.warnings) == {"leakage": [2], "leakage_normalised": [3]}
    assert {finding.file for finding in (*report.warnings, *report.errors)} == {"v"}
    assert lines(report.errors) == {"invalid_json": [4]}
    assert report.validation is not None
    assert (report.statistics.rows, report.validation.rows) == (2, 4)


def test_validation_of_another_kind(tmp_path: Path) -> None:
    other = write(tmp_path, [{"text": "a", "label": "z"}, {"text": "b", "label": "x"}], "v.jsonl")
    report = checked(tmp_path, [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], validation=other)
    assert lines(report.errors) == {"unknown_label": [1]}
    assert lines(checked(tmp_path, [chat("u", "a")], validation=other).errors)["mixed_formats"] == [1]


def test_missing_roles(tmp_path: Path) -> None:
    tokenizer = of_bytes(CHATML)
    rows = [chat("u", "a"), {"messages": [{"role": "system", "content": "s"}, *chat("b")["messages"]]}]
    report = check_file(write(tmp_path, rows), tokenizer=tokenizer)
    assert lines(report.warnings) == {"missing_system_message": [1], "missing_user_message": [2]}


def test_labels(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": label}
        for text, label in [("a", "Yes"), ("b", "yes"), ("c", "no"), ("d", "no"), ("A ", "no"), ("e", "yes")]
    ]
    report = checked(tmp_path, rows)
    assert report.task == "SEQ_CLS"
    assert report.statistics.labels == {"no": 3, "yes": 2, "Yes": 1}
    assert lines(report.warnings) == {
        "rare_label": [1],
        "similar_labels": [2],
        "conflicting_labels": [5],
    }
    assert lines(checked(tmp_path, rows[2:4]).errors) == {"single_label": [1]}


def test_too_many_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.inspection.MOST_LABELS", 2)
    report = checked(tmp_path, [{"text": "a", "label": number} for number in range(4)])
    assert lines(report.errors) == {"too_many_labels": [3, 4]}


def test_labels_of_tokens(tmp_path: Path) -> None:
    rows = [{"tokens": ["Bo", "is"], "labels": ["B", "O"]}, {"tokens": ["is"], "labels": ["O", "O"]}]
    report = checked(tmp_path, rows)
    assert report.task == "TOKEN_CLS"
    assert lines(report.errors) == {"length_mismatch": [2]}
    assert report.statistics.labels == {"B": 1, "O": 1}
    assert report.statistics.trained_tokens is not None
    assert report.statistics.trained_tokens.total == 2


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"source": "a", "target": "b"}, "SEQ_2_SEQ_LM"),
        ({"prompt": "a", "completion": "b"}, "CAUSAL_LM"),
        ({"text": "a"}, "CAUSAL_LM"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "CAUSAL_LM"),
    ],
)
def test_each_format_has_its_task(tmp_path: Path, row: Any, task: str) -> None:
    report = checked(tmp_path, [row])
    assert (report.ok, report.task) == (True, task)
    assert report.objective == ("dpo" if "chosen" in row else "supervised")


def test_rows_of_another_task(tmp_path: Path) -> None:
    report = checked(tmp_path, [{"text": "a"}], task="SEQ_CLS")
    assert lines(report.errors) == {"wrong_task": [1]}
    named = checked(tmp_path, [{"text": "a"}], format="prompt_completion")
    assert set(lines(named.errors)) == {"missing_key", "unrecognized_key"}


def test_figures_are_those_of_what_is_trained(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * number, "completion": "c" * number} for number in (1, 5, 40)]
    report = checked(tmp_path, rows)
    rows_trained = encode(read_jsonl(tmp_path / "data.jsonl"), TOKENIZER, "CAUSAL_LM", 64).rows
    assert report.statistics.tokens is not None
    assert report.statistics.trained_tokens is not None
    assert report.statistics.tokens.total == sum(len(row.ids) for row in rows_trained)
    assert report.statistics.trained_tokens.total == sum(row.trained for row in rows_trained)
    assert (report.statistics.tokens.max, report.statistics.truncated) == (64, 1)
    assert lines(report.warnings) == {"truncated": [3]}
    assert "max_length=82 would keep every row whole." in report.advice


def test_without_a_tokenizer_nothing_is_said_of_tokens(tmp_path: Path) -> None:
    report = check_file(write(tmp_path, [chat("s", "u" * 10_000, "a")]), max_length=4)
    assert report.ok
    assert (report.statistics.tokens, report.statistics.trained_tokens) == (None, None)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted({key for required, optional in FORMATS.values() for key in (*required, *optional)})
PARTS = ["role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call"]
MESSAGE = st.dictionaries(
    st.sampled_from(PARTS), VALUES | st.sampled_from(["user", "assistant", "tool", 0, 1]), max_size=4
)
ROW = st.dictionaries(st.sampled_from(KEYS), VALUES | st.lists(MESSAGE | VALUES, max_size=3), max_size=4)
LINE = (
    st.binary(max_size=40)
    | ROW.map(lambda row: json.dumps(row).encode())
    | ROW.map(lambda row: json.dumps(row, ensure_ascii=False).encode(errors="surrogatepass"))
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINE, max_size=5), st.lists(LINE, max_size=2))
def test_no_bytes_give_anything_but_a_report(tmp_path: Path, found: list[bytes], others: list[bytes]) -> None:
    other = write(tmp_path, others, "other.jsonl")
    report = checked(tmp_path, found, validation=other)
    assert json.loads(json.dumps(report.to_json()))["ok"] == report.ok
    count = len((tmp_path / "data.jsonl").read_bytes().split(b"\n"))
    assert all(1 <= problem.line <= count for finding in report.errors if finding.file == "data.jsonl"
               for problem in finding.problems)  # fmt: skip
