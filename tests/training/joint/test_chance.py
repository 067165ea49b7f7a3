"""What the base drops by itself: the same for a job alone and beside others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from adapters.batch.trainable import Share, TrainableAdapter
from tests.training.joint.stand import make_model
from training.joint.chance import drawing, own_chance


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def share(seed: int, sequences: int, width: int) -> Share:
    return Share(TrainableAdapter({}, 0.0, torch.Generator().manual_seed(seed)), sequences, width)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_each_job_sees_the_dropout_that_it_has_alone(family: str, attention: str) -> None:
    model = make_model(family).train()
    model.set_attn_implementation(attention)
    shares = [share(1, 2, 7), share(2, 1, 9), share(3, 3, 5)]
    ids = torch.randint(3, 200, (6, 9))
    before = torch.get_rng_state()
    with own_chance(model, False)(shares, 9):
        together = model(input_ids=ids).logits
    assert torch.equal(torch.get_rng_state(), before)

    start = 0
    for own in shares:
        rows = slice(start, start + own.sequences)
        torch.manual_seed(own.adapter.generator.initial_seed())
        alone = model(input_ids=ids[rows, : own.width]).logits
        torch.testing.assert_close(together[rows, : own.width], alone, rtol=1e-4, atol=1e-5)
        assert torch.equal(own.adapter.generator.get_state(), torch.get_rng_state())
        start += own.sequences
    assert (together[:2, :7] - model.eval()(input_ids=ids[:2, :7]).logits).abs().max() > 0.01


def test_padding_that_was_asked_of_in_a_mask_stays_out() -> None:
    model = make_model("gpt2").train()
    shares = [share(1, 2, 7), share(2, 1, 9)]
    ids = torch.randint(3, 200, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, 5:] = mask[:2, 7:] = 0
    with own_chance(model, False)(shares, 9):
        together = model(input_ids=ids, attention_mask=mask).logits
    torch.manual_seed(1)
    alone = model(input_ids=ids[:2, :7], attention_mask=mask[:2, :7]).logits
    torch.testing.assert_close(together[0, :5], alone[0, :5], rtol=1e-4, atol=1e-5)


def test_a_base_without_dropout_is_run_as_it_is() -> None:
    shares = [share(1, 1, 5)]
    with own_chance(make_model("llama").train(), True)(shares, 5) as nothing:
        assert nothing is None
    with own_chance(make_model("gpt2").eval(), True)(shares, 5) as nothing:
        assert nothing is None


def test_other_random_numbers_can_t_be_kept_apart() -> None:
    model: Any = make_model("llama")
    model.model.norm = nn.Sequential(model.model.norm, Noise())
    with pytest.raises(ValueError, match="train one at a time"):
        own_chance(model.train(), False)


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


def test_drawing_goes_on_where_the_generator_was() -> None:
    generator = torch.Generator().manual_seed(7)
    with drawing(generator):
        first = torch.rand(3)
    torch.rand(5)
    with drawing(generator):
        second = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(torch.cat([first, second]), torch.rand(6))


def test_a_base_that_drops_can_t_compute_a_pass_twice() -> None:
    with pytest.raises(ValueError, match="gradient_checkpointing is on: train one at a time"):
        own_chance(make_model("gpt2").train(), True)
