"""The numbers, by hand, and what of them passes."""

from __future__ import annotations

import math

import pytest
import torch

from server.proof.measure import Parity, compare


def test_the_numbers_are_those_of_the_definitions() -> None:
    base = [torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
    adapter = [torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])]
    peft_base = [torch.tensor([[0.0, 0.25]]), torch.tensor([[0.0, 0.0]])]
    peft_adapter = [torch.tensor([[math.log(3.0), 0.5]]), torch.tensor([[-4.0, 0.0]])]

    parity = compare(base, adapter, peft_base, peft_adapter)

    assert parity.difference == 4.0
    assert parity.typical == 0.5  # the lower of two medians
    assert parity.base_difference == 0.25
    assert parity.scale == 4.0
    assert parity.effect == 4.0
    # P = (3/4, 1/4) against Q = (1/2, 1/2), and at the other position nothing.
    assert parity.kl == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2)


def test_what_is_impossible_adds_nothing_to_the_divergence() -> None:
    base, adapter = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, -math.inf]])
    parity = compare([base], [adapter], [base], [base])
    assert parity.kl == pytest.approx(math.log(1.5))


def test_shapes_must_be_equal() -> None:
    two, three = [torch.zeros(1, 2)], [torch.zeros(1, 3)]
    with pytest.raises(ValueError, match=r"rows of \(1, 2\) here, of \(1, 3\) in PEFT"):
        compare(two, two, three, three)


@pytest.mark.parametrize(
    ("effect", "base_difference", "dtype", "limit"),
    [
        (50.0, 0.0, torch.float32, 1e-2),  # of logits up to 10: a thousandth
        (50.0, 0.0, torch.bfloat16, 0.6),
        (1e-3, 0.0, torch.float32, 2e-3 + 5e-4),  # one that does little may not be ignored
        (0.4, 0.0, torch.bfloat16, 0.12 + 0.2),
        (0.4, 0.1, torch.bfloat16, 0.3 + 0.2),  # as far as the base itself shows its rounding
        (0.4, 9.0, torch.bfloat16, 0.6),
    ],
)
def test_the_limit_knows_rounding_and_what_the_adapter_does(
    effect: float, base_difference: float, dtype: torch.dtype, limit: float
) -> None:
    parity = Parity(0.0, 0.0, base_difference, 10.0, effect, 0.0)
    assert parity.limit(dtype) == pytest.approx(limit)
