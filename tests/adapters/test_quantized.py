"""Codes multiply as the weights that they stand for, row by row, and are all that stays in memory."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn

from adapters.quantized import (
    QuantizedLinear,
    full_parameter,
    full_shape,
    hold_quantized,
    quantization_of,
)
from tests.quantized import weight_of


def layer(kind: str, outputs: int = 64, inputs: int = 128, dtype: torch.dtype = torch.float32) -> Any:
    """bitsandbytes' own, not run yet. `kind`: `nf4`, `fp4`, `int8`, or `double` for nested nf4."""
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs).to(dtype)
    made: Any
    if kind == "int8":
        made = bitsandbytes.nn.Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=6.0)
    else:
        quantised_as = "fp4" if kind == "fp4" else "nf4"
        nested = kind == "double"
        made = bitsandbytes.nn.Linear4bit(
            inputs, outputs, compute_dtype=dtype, compress_statistics=nested, quant_type=quantised_as
        )
    made.load_state_dict(plain.state_dict())
    return made.to(dtype).to("cpu") if kind != "int8" else made.to("cpu")


def held(made: Any, dtype: torch.dtype = torch.float32) -> QuantizedLinear:
    model = nn.ModuleDict({"map": copy.deepcopy(made)})
    hold_quantized(model, dtype)
    module = model["map"]
    assert isinstance(module, QuantizedLinear)
    return module


def rows(count: int, size: int = 128) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["nf4", "fp4", "double", "int8"])
def test_the_product_is_that_of_the_weights_that_the_codes_stand_for(kind: str) -> None:
    made = layer(kind)
    weight, x, delta = weight_of(made), rows(5), rows(5, 64)
    module = held(made)
    expected = x.double() @ weight.double().t() + made.bias.double()

    assert (module.linear.weight() - weight).abs().max() < 1e-6
    assert (module.linear(x).double() - expected).abs().max() < 1e-5
    assert (module.linear(x, delta.clone()).double() - expected - delta).abs().max() < 1e-5
    assert (module(x[None]).double() - expected).abs().max() < 1e-5
    assert module.linear.kind == ("nf4" if kind == "double" else kind)
    assert (module.out_features, module.in_features) == module.linear.shape == (64, 128)


@pytest.mark.parametrize("shape", [(48, 80), (7, 66)])
def test_shapes_that_fill_no_blocks(shape: tuple[int, int]) -> None:
    made = layer("nf4", *shape)
    weight, x = weight_of(made), rows(3, shape[1])
    linear = held(made).linear

    assert (linear.weight() - weight).abs().max() < 1e-6
    assert (linear(x) - x @ weight.t() - made.bias).abs().max() < 1e-5


def test_a_large_map_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = held(layer("int8")).linear, rows(5)
    whole = linear(x)
    monkeypatch.setattr("adapters.quantized._PIECE", 128 * 10)  # of 64 rows ten at a time

    assert (linear(x) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_compute_in_their_own(kind: str, dtype: torch.dtype) -> None:
    linear = held(layer(kind, dtype=dtype), dtype).linear
    y = linear(rows(4).to(dtype))

    assert y.dtype == linear.weight().dtype == linear.stored == dtype
    expected = rows(4).to(dtype).double() @ linear.weight().double().t() + linear.bias.double()  # type: ignore[union-attr]
    assert (y.double() - expected).abs().max() < 0.03


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_row_does_not_depend_on_its_neighbours(kind: str) -> None:
    """bitsandbytes' int8 product does: a large value in one row changes how all are rounded."""
    made = layer(kind)
    linear, x = held(made).linear, rows(4)
    x[1] *= 50

    assert (linear(x)[:1] - linear(x[:1])).abs().max() < 1e-5
    if kind == "int8":
        theirs = made.eval()(x)[:1] - made(x[:1])
        assert theirs.abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "share"), [("nf4", 0.15), ("double", 0.15), ("int8", 0.3)])
def test_codes_are_all_that_stays(kind: str, share: float) -> None:
    module = held(layer(kind, 256, 256))
    full = 256 * 256 * 4

    assert module.linear.nbytes < share * full
    assert module.weight.data_ptr() == module.linear.codes.data_ptr()
    assert sum(parameter.nbytes for parameter in module.parameters()) < share * full


def test_a_model_tells_its_quantization_and_the_full_shapes() -> None:
    model = nn.Sequential(nn.Linear(128, 128), layer("int8"), nn.ReLU())
    assert quantization_of(model) is None
    hold_quantized(model, torch.float32)

    assert quantization_of(model) == "int8"
    assert [full_shape(model, name) for name in ("0.weight", "1.weight", "1.bias")] == [
        (128, 128),
        (64, 128),
        (64,),
    ]
    assert full_parameter(model, "0.weight") is model.get_parameter("0.weight")
    assert torch.allclose(full_parameter(model, "1.weight"), weight_of(layer("int8")), atol=1e-6)
