"""A frozen linear map in both forms equals the plain product."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from adapters.batch.linear import LinearMap, PackedLinear, PlainLinear, can_pack, make_linear
from adapters.batch.native.gemm import library
from adapters.batch.native.linear import NativeLinear


def _random(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


WEIGHT, BIAS, X, DELTA = _random(24, 16), _random(24, seed=1), _random(5, 16, seed=2), _random(5, 24, seed=3)


def native(weight: torch.Tensor, bias: torch.Tensor | None) -> NativeLinear:
    loaded = library()
    assert loaded is not None, "these tests need a C++ compiler"
    return NativeLinear(loaded, weight, bias)


Form = Callable[[torch.Tensor, torch.Tensor | None], LinearMap]
FORMS: list[Form] = [PlainLinear, PackedLinear, native]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [None, BIAS])
def test_is_the_product(form: Form, bias: torch.Tensor | None) -> None:
    linear = form(WEIGHT, bias)
    expected = X.double() @ WEIGHT.double().t() + (0 if bias is None else bias.double())
    assert torch.allclose(linear(X).double(), expected, atol=1e-5)
    assert torch.allclose(linear(X, DELTA.clone()).double(), expected + DELTA.double(), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gives_its_weight_back_bit_for_bit(form: Form) -> None:
    linear = form(WEIGHT, BIAS)
    linear(X, DELTA.clone())
    assert torch.equal(linear.weight(), WEIGHT)


@pytest.mark.parametrize("form", FORMS)
def test_takes_a_transposed_weight(form: Form) -> None:
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


def test_the_form_follows_type_and_device() -> None:
    def made(weight: torch.Tensor) -> type[LinearMap]:
        return type(make_linear(weight, None))

    assert made(WEIGHT) is NativeLinear
    assert can_pack(WEIGHT)
    assert made(WEIGHT.half()) is PlainLinear
    assert made(WEIGHT.double()) is PlainLinear
    assert made(torch.empty(4, 4, device="meta")) is PlainLinear


@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 70, 1100])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_native_products_of_any_size(outputs: int, half: bool) -> None:
    weight, bias = _random(outputs, 37, seed=6), _random(outputs, seed=7)
    weight = weight.bfloat16().float() if half else weight
    linear = native(weight, bias)
    assert torch.equal(linear.weight(), weight)
    for rows in (0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 28, 29, 100):
        x = _random(rows, 37, seed=rows)
        expected = x.double() @ weight.double().t() + bias.double()
        assert torch.allclose(linear(x).double(), expected, atol=1e-4), rows


@pytest.mark.parametrize("inputs", [37, 4864])
def test_a_native_row_is_the_same_bit_for_bit_beside_any_others(inputs: int) -> None:
    linear = native(_random(70, inputs), None)
    x = _random(130, inputs, seed=5)
    together = linear(x)
    for row in range(0, len(x), 7):
        assert torch.equal(linear(x[row : row + 1])[0], together[row])
    for rows in (2, 6, 7, 14, 15, 31):
        assert torch.equal(linear(x[:rows]), together[:rows])


def test_a_weight_without_more_digits_is_kept_in_half_the_bytes() -> None:
    weight = _random(32, 9)
    short = weight.bfloat16().float()
    assert native(weight, None).panels.data.dtype == torch.float32
    for given in (short, short.bfloat16()):
        panels = native(given, None).panels
        assert panels.data.dtype == torch.bfloat16
        assert torch.equal(panels.unpack(), short)
    assert native(torch.cat([short, weight[:1]]), None).panels.data.dtype == torch.float32
