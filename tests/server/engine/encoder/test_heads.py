"""Heads against the whole classes that they were taken from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from server.engine.encoder.heads import task_heads
from tests.server.engine.encoder.stand import CLASSES, FAMILIES, prompts, save_base


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_that_of_the_class(family: str, task: str, tmp_path: Path) -> None:
    folder = save_base(family, task, tmp_path, labels=3)
    whole = CLASSES[task].from_pretrained(folder)
    prefix = f"{whole.base_model_prefix}."
    own = {
        name: parameter.detach()
        for name, parameter in whole.named_parameters()
        if ".pooler." in name or not name.startswith(prefix)
    }
    head = task_heads(AutoConfig.from_pretrained(folder), {})[task]
    assert head.spec.shapes.keys() == own.keys()
    assert {name for name, tensor in own.items() if tensor.shape[0] == 3} == head.spec.by_label
    ids, mask = torch.tensor(prompts(9, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    with torch.inference_mode():
        output = whole(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        logits = head.logits(own, output.hidden_states[-1], mask)
    torch.testing.assert_close(logits, output.logits, rtol=1e-6, atol=1e-6)


def test_the_checkpoints_own_parts_fill_in_and_the_adapters_come_first(tmp_path: Path) -> None:
    folder = save_base("deberta", "SEQ_CLS", tmp_path)
    whole = CLASSES["SEQ_CLS"].from_pretrained(folder)
    own = {name: p.detach() for name, p in whole.named_parameters() if not name.startswith("deberta.")}
    heads = task_heads(whole.config, own)
    hidden, mask = torch.randn(1, 4, 32), torch.ones(1, 4, dtype=torch.int64)
    bias = {"classifier.bias": own["classifier.bias"] + 2}
    with torch.inference_mode():
        base, changed = (heads["SEQ_CLS"].logits(head, hidden, mask) for head in ({}, bias))
        expected = whole.classifier(whole.pooler(hidden))
    torch.testing.assert_close(base, expected)
    torch.testing.assert_close(changed, base + 2)
    assert heads["SEQ_CLS"].spec.given == {name: tuple(tensor.shape) for name, tensor in own.items()}
    assert heads["SEQ_CLS"].spec.modules == ("pooler", "classifier")


@pytest.mark.parametrize(
    ("family", "modules"), [("bert", ("pooler", "classifier")), ("roberta", ("classifier",))]
)
def test_parts_have_the_names_that_modules_to_save_takes(family: str, modules: tuple[str, ...]) -> None:
    model_type, fields = FAMILIES[family]
    assert task_heads(AutoConfig.for_model(model_type, **fields), {})["SEQ_CLS"].spec.modules == modules
