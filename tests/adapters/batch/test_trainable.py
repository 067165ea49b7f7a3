"""Many adapters in one pass with gradients: each as PEFT has it alone, whoever stands beside it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.batch.trainable import Share, TrainableAdapter, TrainableBatch, TrainableDelta, TrainableLinear
from tests.tiny import VOCAB, make_model

FEATURES = {"first": (6, 5), "second": (5, 4)}
WIDTH = 5


def delta(inputs: int, outputs: int, rank: int, seed: int, scale: float = 2.0) -> TrainableDelta:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
    b = torch.randn(outputs, rank, generator=generator, dtype=torch.float64)
    return TrainableDelta(nn.Parameter(a), nn.Parameter(b), scale)


def adapter(seed: int, rank: int, *names: str, dropout: float = 0.0) -> TrainableAdapter:
    deltas = {name: delta(*FEATURES[name], rank, seed + number) for number, name in enumerate(names)}
    return TrainableAdapter(deltas, dropout, torch.Generator().manual_seed(seed))


class Chain(nn.Module):
    """Two linear layers of the two kinds that bases have, with something crooked between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first: nn.Module = nn.Linear(6, 5)
        self.second: nn.Module = Conv1D(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


@pytest.fixture
def chain() -> tuple[Chain, TrainableBatch]:
    model = Chain().double().requires_grad_(False)
    batch = TrainableBatch()
    batch.attach(model, ["first", "second"])
    return model, batch


def by_hand(model: Chain, x: Tensor, one: TrainableAdapter) -> Tensor:
    """The formula, from the deltas as one matrix."""
    values = x
    for name, crooked in (("first", torch.tanh), ("second", lambda y: y)):
        layer = getattr(model, name)
        weight = layer.weight if name == "first" else layer.weight.t()
        if name in one.deltas:
            found = one.deltas[name]
            weight = weight + found.scale * found.b @ found.a
        values = crooked(values @ weight.t() + layer.bias)
    return values


MIXES = {
    "alike": [(2, 3), (2, 3)],
    "of other ranks": [(2, 1), (2, 4), (2, 2)],
    "of other sizes": [(1, 2), (3, 2), (3, 5), (1, 1)],
}


@pytest.mark.parametrize("mix", MIXES)
def test_each_row_gets_its_own_delta_and_each_parameter_its_own_gradient(
    chain: tuple[Chain, TrainableBatch], mix: str
) -> None:
    model, batch = chain
    touched = [("first", "second"), ("second",), ("first",), ("first", "second")]
    shares = [
        Share(adapter(10 * number, rank, *touched[number]), sequences, WIDTH)
        for number, (sequences, rank) in enumerate(MIXES[mix])
    ]
    x = torch.randn(sum(share.sequences for share in shares), WIDTH, 6, dtype=torch.float64)
    with batch.passing(shares, WIDTH):
        y = model(x)
    (y**2).sum().backward()

    start = 0
    for share in shares:
        own = x[start : start + share.sequences]
        expected = by_hand(model, own, share.adapter)
        torch.testing.assert_close(y[start : start + share.sequences], expected, rtol=1e-12, atol=1e-12)
        gradients = torch.autograd.grad((expected**2).sum(), share.adapter.parameters())
        for parameter, gradient in zip(share.adapter.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-11, atol=1e-11)
        start += share.sequences


def test_gradients_are_exact(chain: tuple[Chain, TrainableBatch]) -> None:
    model, batch = chain
    shares = [
        Share(adapter(0, 2, "first", "second"), 1, WIDTH),
        Share(adapter(9, 1, "second"), 1, WIDTH),
        Share(adapter(20, 3, "first"), 2, WIDTH),
    ]

    def run(x: Tensor, *_: Tensor) -> Tensor:
        with batch.passing(shares, WIDTH):
            return model(x)  # type: ignore[no-any-return]

    parameters = [parameter for share in shares for parameter in share.adapter.parameters()]
    x = torch.randn(4, WIDTH, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_an_overflow_reaches_no_neighbour(chain: tuple[Chain, TrainableBatch]) -> None:
    model, batch = chain
    shares = [Share(adapter(10 * number, 3, "first", "second"), 2, WIDTH) for number in range(3)]
    x = torch.randn(6, WIDTH, 6, dtype=torch.float64)
    found = []
    for value in (1.0, float("inf"), float("nan")):
        with torch.no_grad():
            shares[1].adapter.deltas["second"].b[0, 0] = value
        for share in shares:
            for parameter in share.adapter.parameters():
                parameter.grad = None
        with batch.passing(shares, WIDTH):
            y = model(x)
        (y**2).sum().backward()
        others = [parameter for share in (shares[0], shares[2]) for parameter in share.adapter.parameters()]
        found.append([y[:2], y[4:], *(parameter.grad for parameter in others)])
        assert y[2:4].isfinite().all() == (value == 1.0)
    for broken in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], broken, strict=True))


def test_between_passes_it_is_the_bare_base(chain: tuple[Chain, TrainableBatch]) -> None:
    model, batch = chain
    x = torch.randn(2, WIDTH, 6, dtype=torch.float64)
    bare = by_hand(model, x, TrainableAdapter({}))
    torch.testing.assert_close(model(x), bare)
    with batch.passing([Share(TrainableAdapter({}), 2, WIDTH)], WIDTH):
        torch.testing.assert_close(model(x), bare)
    assert model.first.weight.shape == (5, 6)
    assert model.first.bias is not None


def test_a_layer_that_does_not_see_one_row_for_each_token_is_named(
    chain: tuple[Chain, TrainableBatch],
) -> None:
    model, batch = chain
    with (
        batch.passing([Share(adapter(0, 2, "second"), 3, WIDTH)], WIDTH),
        pytest.raises(RuntimeError, match="first got 10 rows where the pass has 15"),
    ):
        model(torch.randn(2, WIDTH, 6, dtype=torch.float64))


def test_a_layer_is_wrapped_once(chain: tuple[Chain, TrainableBatch]) -> None:
    model, batch = chain
    batch.attach(model, ["first"])
    assert isinstance(model.first, TrainableLinear)
    assert isinstance(model.first.base, nn.Linear)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_with_dropout_beside_others_is_peft_s_own_alone(family: str) -> None:
    """The same random numbers fall on the same places, whatever the width and the neighbours."""
    base = make_model(family)
    peft = with_peft(base, r=3, lora_alpha=5, lora_dropout=0.3)
    ids = torch.randint(3, VOCAB, (2, 7))
    peft.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    alone = peft(input_ids=ids).logits
    alone.sum().backward()

    own = taken(peft, 0.3)
    own.generator.set_state(state)
    expected = [parameter.grad for parameter in own.parameters()]
    for parameter in own.parameters():
        parameter.grad = None
    other = taken(with_peft(base, r=8, lora_alpha=4), 0.5)
    batch = TrainableBatch()
    batch.attach(base, list(own.deltas))
    padded = torch.zeros(5, 9, dtype=torch.long)
    padded[3:, :7] = ids
    with batch.passing([Share(other, 3, 9), Share(own, 2, 7)], 9):
        logits = base(input_ids=padded).logits[3:, :7]
    logits.sum().backward()

    torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip(own.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


def with_peft(base: Any, **config: Any) -> Any:
    """PEFT's model on a copy of the base, with B away from zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of fan_in_fan_out, which it then corrects itself
        model = get_peft_model(
            copy.deepcopy(base), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **config)
        )
    for module in model.modules():  # the base's own dropout is no matter of the adapter's
        if isinstance(module, nn.Dropout) and module.p == 0.1:
            module.p = 0.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


def taken(peft: Any, dropout: float) -> TrainableAdapter:
    deltas = {
        name: TrainableDelta(
            module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"]
        )
        for name, module in peft.base_model.model.named_modules()
        if hasattr(module, "lora_A")
    }
    return TrainableAdapter(deltas, dropout)
