"""Names of a head's outputs: in order, one for each."""

from __future__ import annotations

import pytest
import torch

from adapters.base import BaseSpec, HeadSpec
from adapters.checkpoint.labels import head_labels, parse_labels
from adapters.errors import InvalidAdapter

BASE = BaseSpec("tiny", "", {})


@pytest.mark.parametrize(
    "text",
    [
        b'["good", "bad"]',
        b'{"id2label": {"0": "good", "1": "bad"}}',
        b'{"x": 1, "id2label": {"1": "bad", "0": "good"}}',
    ],
)
def test_both_forms(text: bytes) -> None:
    assert parse_labels(text) == ("good", "bad")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"good", "the list of labels is not valid JSON"),
        (b"3", "the labels must be a list of names"),
        (b"{}", "the labels must be a list of names"),
        (b'{"id2label": {"1": "a"}}', "the labels must be a list of names"),
        (b'{"id2label": ["a"]}', "the labels must be a list of names"),
        (b'["a", 1]', "the labels must be a list of names"),
        (b'["a", ""]', "the labels must be a list of names"),
        (b'["a", "a"]', "the labels have a name twice"),
        (b" " * (1024**2 + 1), "the labels are 1048577 bytes; the limit is 1048576 bytes"),
    ],
)
def test_refused(text: bytes, message: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        parse_labels(text)
    assert message in str(caught.value)


def test_one_for_each_output() -> None:
    head = {"classifier.dense.weight": torch.ones(4, 4), "classifier.out_proj.weight": torch.ones(2, 4)}
    assert head_labels(head, ("a", "b"), "SEQ_CLS", BASE) == ("a", "b")
    assert head_labels(head, (), "SEQ_CLS", BASE) == ("LABEL_0", "LABEL_1")
    assert head_labels({}, (), None, BASE) == ()
    with pytest.raises(InvalidAdapter, match="3 labels for a head of 2 outputs; give one for each"):
        head_labels(head, ("a", "b", "c"), "SEQ_CLS", BASE)
    with pytest.raises(InvalidAdapter, match="1 labels for an adapter that has no head; leave them out"):
        head_labels({}, ("a",), None, BASE)
    both = {"one.weight": torch.ones(2, 2), "two.weight": torch.ones(2, 2)}
    with pytest.raises(
        InvalidAdapter, match=r"can't tell which of one\.weight, two\.weight is the last layer"
    ):
        head_labels(both, (), "SEQ_CLS", BASE)


def test_the_head_of_the_base_s_checkpoint() -> None:
    spec = HeadSpec({"c.weight": (2, 4)}, frozenset({"c.weight"}), {"c.weight": (2, 4)}, ("c",))
    base = BaseSpec("tiny", "", {}, task="SEQ_CLS", labels=("yes", "no"), heads={"SEQ_CLS": spec})
    assert head_labels({}, (), "SEQ_CLS", base) == ("yes", "no")
    assert head_labels({}, ("a", "b"), "SEQ_CLS", base) == ("a", "b")
    assert head_labels({"c.weight": torch.ones(3, 4)}, (), "SEQ_CLS", base) == (
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    )
