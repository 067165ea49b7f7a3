"""Each preset's choices on bases of many sizes, and that its rate suits the shipped one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.training.plan.models import ROWS, base_of
from training.base import MODEL_DIR
from training.plan.auto import choose
from training.plan.facts import RowFacts, read_base
from training.plan.presets import HIGHEST_RATE, modern, modern_rate, tutorial, tutorial_rate
from training.spec import Method

GIB = 1024**3


@pytest.mark.parametrize(("size", "rank"), [("7B", 8), ("13B", 8), ("30B", 16), ("65B", 32), ("1B", 8)])
def test_the_texts_rank_by_size(size: str, rank: int) -> None:
    choices = tutorial(base_of(size), ROWS, None)
    assert (choices["rank"].value, choices["alpha"].value) == (rank, 2 * rank)


@pytest.mark.parametrize(
    ("card", "rank", "alpha"), [(8, 4, 16), (11, 4, 16), (12, 8, 32), (16, 8, 32), (24, 16, 32), (80, 16, 32)]
)
def test_the_texts_rank_by_card(card: int, rank: int, alpha: int) -> None:
    choices = tutorial(base_of("7B"), ROWS, card * GIB)
    assert (choices["rank"].value, choices["alpha"].value, choices["dropout"].value) == (rank, alpha, 0.05)


def test_where_the_texts_name_no_modules_all_linear_layers_get_one() -> None:
    choices = tutorial(replace(base_of("7B"), usual=(), model_type="new"), ROWS, None)
    assert choices["target_modules"].value == "all-linear"
    assert "name none for new" in choices["target_modules"].reason


@pytest.mark.parametrize(
    ("size", "rate"), [("7B", 2.9e-4), ("65B", 1.7e-4), ("1B", 4.9e-4), ("0.5B", 5.3e-4)]
)
def test_the_rate_is_ten_times_that_of_full_training_by_width(size: str, rate: float) -> None:
    assert modern_rate(base_of(size)).value == rate
    assert modern_rate(base_of(size)).value == pytest.approx(
        2.5 * tutorial_rate(base_of(size)).value, rel=0.1
    )


@pytest.mark.parametrize(("method", "rank"), [("lora", 4), ("lora", 64), ("rslora", 4), ("rslora", 64)])
def test_an_adapter_is_as_strong_whatever_its_method_divides_by(method: Method, rank: int) -> None:
    given = {"method": method, "rank": rank}
    lora = choose(base_of("1B"), ROWS, given=given).spec.lora
    divisor = rank**0.5 if method == "rslora" else rank
    assert lora.alpha / divisor == pytest.approx(32 / rank, rel=1e-2)
    assert choose(base_of("1B"), ROWS, given={**given, "alpha": 5.0}).spec.lora.alpha == 5.0


def test_a_tiny_base_gets_a_rate_by_its_width_alone() -> None:
    shipped = read_base(MODEL_DIR)
    assert modern_rate(shipped).value == 7.8e-3
    assert modern_rate(replace(shipped, hidden=16)).value == HIGHEST_RATE


def test_the_rank_grows_with_what_is_to_be_learned() -> None:
    base = base_of("1B")
    ranks = [
        modern(base, replace(ROWS, trained=trained), None)["rank"].value for trained in (10**5, 10**7, 10**9)
    ]
    assert ranks == [8, 16, 128]


@pytest.mark.parametrize(
    ("rows", "epochs"), [(3, 25), (10, 10), (33, 3), (1000, 3), (10_000, 2), (60_000, 1)]
)
def test_epochs_by_the_rule_of_openai(rows: int, epochs: int) -> None:
    data = RowFacts(rows=rows, tokens=100 * rows, longest=100, trained=50 * rows)
    assert modern(base_of("1B"), data, None)["epochs"].value == epochs


@pytest.mark.parametrize(("rows", "batch"), [(10, 1), (200, 4), (400, 8), (2000, 16)])
def test_few_rows_get_small_batches(rows: int, batch: int) -> None:
    data = RowFacts(rows=rows, tokens=100 * rows, longest=100, trained=50 * rows)
    assert modern(base_of("1B"), data, None)["effective_batch"].value == batch
