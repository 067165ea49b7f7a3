"""Operations of a token, and where a rate comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import make_model
from tests.training.plan.models import base_of
from training.base import MODEL_DIR
from training.methods import wrap
from training.plan.duration import duration, measure, operations_per_token
from training.plan.facts import facts_of
from training.spec import LoraSpec, TrainSpec


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(checkpointing: bool) -> None:
    model = make_model("llama")
    model.untrained = []
    base, spec = facts_of(model, "llama"), TrainSpec(gradient_checkpointing=checkpointing)
    trained = wrap(model, spec, [], 10).train()
    ids = torch.randint(3, 90, (4, 32))
    with FlopCounterMode(display=False) as counter:
        trained(input_ids=ids).logits.sum().backward()
    counted = counter.get_total_flops() / ids.numel()
    assert operations_per_token(base, spec, 32) == pytest.approx(counted, rel=0.15)


def test_a_rate_is_given_assumed_for_the_card_or_for_the_cores() -> None:
    base, spec = base_of("7B"), TrainSpec()
    given = duration(base, spec, 10_000, 100, cuda=True, rate=500, devices=2)
    assert (given.seconds, given.source) == (10, "given")
    card = duration(base, spec, 10_000, 100, cuda=True, gpu_bytes=24 * 1024**3)
    assert card.source == "assumed"
    assert "assumed 40 TFLOP/s, usual for a card of 24 GiB" in card.said
    assert card.tokens_per_second == pytest.approx(40e12 / operations_per_token(base, spec, 100))
    cpu = duration(base, spec, 10_000, 100, cuda=False)
    assert "GFLOP/s for each of" in cpu.said
    assert cpu.seconds > 50 * card.seconds


def test_steps_can_be_timed() -> None:
    spec = TrainSpec(LoraSpec(rank=2), batch_size=2)
    rate = measure(MODEL_DIR, spec, 16)
    assert 1 < rate < 1e9
    assert duration(base_of("1B"), spec, 100, 16, cuda=False, rate=rate, measured=True).source == "measured"


def test_what_can_not_be_timed_says_so() -> None:
    with pytest.raises(ValueError, match="causal models without NF4 only"):
        measure(MODEL_DIR, replace(TrainSpec(), task="SEQ_CLS"), 16)
