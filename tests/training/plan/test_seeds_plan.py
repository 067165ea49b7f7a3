"""What the seed texts say of sizes, by the number that docs/seeds.md gives it: the plan's figures."""

from __future__ import annotations

import pytest

from tests.training.plan.models import ROWS, base_of
from training.data.advice import BANDS
from training.plan import RowFacts, choose, make_plan, solve_batch
from training.plan.memory import estimate
from training.plan.trainable import count, rank_for_share
from training.spec import LoraSpec, TrainSpec

GIB = 1024**3


def test_seed_019_alpha_is_twice_the_rank_by_default() -> None:
    assert LoraSpec().alpha == 2 * LoraSpec().rank
    assert choose(base_of("7B"), ROWS, "tutorial", given={"rank": 4}).spec.lora.alpha == 8


def test_seed_031_rows_of_a_pass_are_chosen_by_what_fits() -> None:
    sizes = [
        choose(base_of("7B"), ROWS, cuda=True, gpu_bytes=card * GIB, given={"method": "lora"}).spec.batch_size
        for card in (24, 80)
    ]
    assert sizes[0] < sizes[1]


def test_seed_032_accumulation_is_effective_over_rows_and_devices() -> None:
    assert solve_batch(rows=2, effective=8).accumulation == 4
    assert solve_batch(rows=2, effective=8, devices=2).accumulation == 2
    with pytest.raises(ValueError, match="8 / 3 is no whole number"):
        solve_batch(rows=3, effective=8)


def test_seed_034_one_to_three_epochs() -> None:
    assert TrainSpec().epochs == 3
    assert choose(base_of("30B"), ROWS, "tutorial").spec.epochs == 3
    assert choose(base_of("30B"), RowFacts(60_000, 6_000_000, 100, 10**6)).spec.epochs == 1


def test_seed_035_half_precision_halves_the_base_and_not_the_adapter() -> None:
    half, full = (
        {part.name: part.size for part in estimate(base_of("7B"), TrainSpec(precision=name), 64).parts}
        for name in ("bfloat16", "float32")
    )
    assert half["weights"] == full["weights"] // 2
    assert half["adapter"] == full["adapter"]
    assert choose(base_of("7B"), ROWS, cuda=True).spec.precision == "bfloat16"


def test_seed_036_regularisation_small_rates_and_few_epochs() -> None:
    spec = choose(base_of("7B"), ROWS, "tutorial").spec
    assert (spec.lora.dropout, spec.weight_decay, spec.max_grad_norm, spec.epochs) == (0.05, 0.01, 1.0, 3)
    assert spec.learning_rate < choose(base_of("7B"), ROWS, "modern").spec.learning_rate


@pytest.mark.parametrize(("size", "rank"), [("1B", 8), ("7B", 8), ("30B", 16), ("65B", 32)])
def test_seed_039_rank_by_the_size_of_the_base(size: str, rank: int) -> None:
    assert choose(base_of(size), ROWS, "tutorial").spec.lora.rank == rank


@pytest.mark.parametrize(
    ("size", "card", "rank", "alpha"), [("7B", 8, 4, 16), ("13B", 12, 8, 32), ("30B", 24, 16, 32)]
)
def test_seed_040_rank_by_the_card_which_holds_the_base_only_in_4_bits(
    size: str, card: int, rank: int, alpha: int
) -> None:
    rows = RowFacts(rows=5000, tokens=500_000, longest=128, trained=200_000)
    found = choose(base_of(size), rows, "tutorial", cuda=True, gpu_bytes=card * GIB)
    lora = found.spec.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.method) == (rank, alpha, 0.05, "qlora")
    assert found.fits
    plain = make_plan(base_of(size), rows, cuda=True, gpu_bytes=card * GIB, given={"method": "lora"})
    assert "qlora" in (plain.options["tutorial"].remedy or "")


def test_seed_041_the_ranges_are_hints_and_no_bounds() -> None:
    assert LoraSpec(rank=1, alpha=512, dropout=0.5).rank == 1


def test_seed_042_rows_by_the_size_of_the_base() -> None:
    assert BANDS == ((10, 3_000, 5_000), (32, 5_000, 10_000), (64, 10_000, 20_000))


def test_seed_045_what_five_percent_of_the_base_would_take() -> None:
    seven = make_plan(base_of("7B"), ROWS).five_percent
    assert seven == {"all-linear": 135, "default": 643}
    assert rank_for_share(base_of("0.5B"), LoraSpec(), 0.05) == 45


@pytest.mark.parametrize("rank", [4, 8, 16, 64])
def test_seed_047_one_plus_four_m(rank: int) -> None:
    base, spec = base_of("7B"), TrainSpec(LoraSpec(rank=rank))
    memory = estimate(base, spec, 64)
    share = count(base, spec.lora).trainable / base.parameters
    parts = {part.name: part.size for part in memory.parts}
    held = sum(parts[name] for name in ("weights", "adapter", "gradients", "optimizer"))
    assert memory.rule == pytest.approx((1 + 4 * share) * 4 * base.parameters)
    assert held == pytest.approx(memory.rule, rel=1e-6)
    assert memory.full_training == 4 * 4 * base.parameters
    assert memory.full > memory.rule  # what the rule leaves out


def test_seed_048_ten_thousand_times_fewer_on_gpt_3() -> None:
    trained = 96 * 2 * (2 * 12288) * 4  # q and v of 96 layers, 12,288 wide, r=4
    assert 9_000 < 175e9 / trained < 10_000


def test_seed_051_the_adapter_is_a_few_megabytes() -> None:
    qv = count(base_of("7B"), LoraSpec(rank=8, target_modules="default")).trainable
    everywhere = count(base_of("7B"), LoraSpec(rank=16)).trainable
    assert (round(2 * qv / 1e6, 1), round(2 * everywhere / 1e6)) == (8.4, 80)
