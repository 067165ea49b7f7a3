"""Batches and their loss: padding counts for nothing, and a loss is transformers' own."""

from __future__ import annotations

import pytest
import torch

from tests.training.report import kit
from training.data import IGNORE, Tokens
from training.run.batches import collate, token_loss, trained
from training.spec import TaskName

PAD = 0


def test_padding_is_masked_and_has_no_label() -> None:
    batch = collate([Tokens([1, 5], [IGNORE, 5]), Tokens([1, 6, 7], [IGNORE, 6, 7])], PAD)
    assert batch["input_ids"].tolist() == [[1, 5, PAD], [1, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORE, 5, IGNORE], [IGNORE, 6, 7]]


def test_a_class_is_one_label_for_a_row() -> None:
    batch = collate([Tokens([1, 5], [2]), Tokens([1], [0])], PAD, "SEQ_CLS")
    assert batch["labels"].tolist() == [2, 0]
    assert int(trained(batch["labels"], "SEQ_CLS")) == 2


def test_targets_have_a_length_of_their_own() -> None:
    batch = collate([Tokens([1, 5, 6], [7]), Tokens([1], [8, 9])], PAD, "SEQ_2_SEQ_LM")
    assert batch["labels"].tolist() == [[7, IGNORE], [8, 9]]


def test_nothing_says_the_first_token_of_a_row() -> None:
    assert int(trained(torch.tensor([[4, 5, 6], [IGNORE, 5, IGNORE]]), "CAUSAL_LM")) == 3
    assert int(trained(torch.tensor([[4, 5, 6], [IGNORE, 5, IGNORE]]), "TOKEN_CLS")) == 4


@pytest.mark.parametrize("task", ["SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS"])
def test_the_loss_is_the_one_that_transformers_computes(task: TaskName) -> None:
    model = {"SEQ_2_SEQ_LM": kit.translator, "SEQ_CLS": kit.classifier, "TOKEN_CLS": kit.tagger}[task]()
    batch = collate(kit.rows(task, 5), PAD, task)
    output = model(**batch)
    loss, right = token_loss(output.logits, batch["labels"], task, trained(batch["labels"], task))
    torch.testing.assert_close(loss, output.loss, atol=1e-6, rtol=1e-6)
    said = output.logits.argmax(-1)
    assert int(right) == int(((said == batch["labels"]) & (batch["labels"] != IGNORE)).sum())
