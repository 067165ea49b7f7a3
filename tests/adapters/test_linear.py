"""A frozen linear map in both forms equals the plain product."""

from __future__ import annotations

import pytest
import torch

from adapters.linear import LinearMap, PackedLinear, PlainLinear, make_linear


def _random(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


WEIGHT, BIAS, X, DELTA = _random(24, 16), _random(24, seed=1), _random(5, 16, seed=2), _random(5, 24, seed=3)
FORMS = [PlainLinear, PackedLinear]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [None, BIAS])
def test_is_the_product(form: type[PlainLinear | PackedLinear], bias: torch.Tensor | None) -> None:
    linear = form(WEIGHT, bias)
    expected = X.double() @ WEIGHT.double().t() + (0 if bias is None else bias.double())
    assert torch.allclose(linear(X).double(), expected, atol=1e-5)
    assert torch.allclose(linear(X, DELTA.clone()).double(), expected + DELTA.double(), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gives_its_weight_back_bit_for_bit(form: type[PlainLinear | PackedLinear]) -> None:
    linear = form(WEIGHT, BIAS)
    linear(X, DELTA.clone())
    assert torch.equal(linear.weight(), WEIGHT)


@pytest.mark.parametrize("form", FORMS)
def test_takes_a_transposed_weight(form: type[PlainLinear | PackedLinear]) -> None:
    """`Conv1D` of GPT-2 stores the transpose."""
    linear = form(WEIGHT.t().contiguous().t(), None)
    assert torch.allclose(linear(X), X @ WEIGHT.t(), atol=1e-5)
    assert torch.equal(linear.weight(), WEIGHT)


def test_a_packed_row_is_the_same_bit_for_bit_in_any_batch_in_bfloat16() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # such a CPU never gets this form
        assert isinstance(make_linear(WEIGHT.bfloat16(), None), PlainLinear)
        return
    linear = PackedLinear(_random(96, 64).bfloat16(), None)
    x = _random(40, 64, seed=5).bfloat16()
    together = linear(x)
    for rows in (1, 2, 7, 16):
        assert torch.equal(linear(x[:rows].contiguous()), together[:rows])


def test_only_a_cpu_weight_of_a_fast_type_is_packed() -> None:
    def made(weight: torch.Tensor) -> type[LinearMap]:
        return type(make_linear(weight, None))

    assert made(WEIGHT) is PackedLinear
    assert made(WEIGHT.half()) is PlainLinear
    assert made(WEIGHT.double()) is PlainLinear
    assert made(torch.empty(4, 4, device="meta")) is PlainLinear
