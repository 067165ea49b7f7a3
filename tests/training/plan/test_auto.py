"""A whole spec from facts: what is asked stays, the rest fits the memory, and torch is not needed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.training.plan.models import ROWS, base_of
from training.plan.auto import BATCH_FIELDS, LORA_FIELDS, SPEC_FIELDS, choose
from training.spec import spec_from_json, spec_to_json

GIB = 1024**3


def test_a_spec_that_can_be_run() -> None:
    spec = choose(base_of("1B"), ROWS).spec
    assert spec_from_json(spec_to_json(spec)) == spec
    assert (spec.lora.target_modules, spec.lora.alpha, spec.learning_rate) == ("all-linear", 32.0, 4.9e-4)
    assert (spec.max_length, spec.batch_size, spec.precision) == (512, 16, "float32")


def test_both_presets_have_a_reason_for_each_choice() -> None:
    """But for what says only when to look and where to compute, and for what is not used."""
    left = {"beta", "steps", "evaluate_every", "save_every", "patience", "device", "seed"}
    left |= {"modules_to_save", "layers", "rank_pattern", "alpha_pattern"}
    for preset in ("modern", "tutorial"):
        chosen = choose(base_of("7B"), ROWS, preset)
        assert chosen.preset == preset
        assert all(chosen.reasons.values())
        assert chosen.reasons.keys() >= (LORA_FIELDS | SPEC_FIELDS | BATCH_FIELDS) - left


def test_what_is_asked_stays() -> None:
    asked = {"method": "dora", "rank": 3, "learning_rate": 1e-3, "batch_size": 4, "seed": 7}
    chosen = choose(base_of("7B"), ROWS, "tutorial", given=asked)
    spec = chosen.spec
    assert (spec.lora.method, spec.lora.rank, spec.learning_rate, spec.seed) == ("dora", 3, 1e-3, 7)
    assert (spec.batch_size, spec.accumulation) == (4, 4)
    assert spec.lora.alpha == 6
    assert {chosen.reasons[name] for name in asked} == {"as asked"}


def test_numbers_of_a_batch_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="is 16, not the effective batch 10"):
        choose(
            base_of("7B"),
            ROWS,
            given={"batch_size": 8, "accumulation": 2, "devices": 1, "effective_batch": 10},
        )
    with pytest.raises(ValueError, match="there is no ranks, rows to choose"):
        choose(base_of("7B"), ROWS, given={"rows": 8, "ranks": 2})
    with pytest.raises(ValueError, match="rank must be at least 1"):
        choose(base_of("7B"), ROWS, given={"rank": 0})


@pytest.mark.parametrize(
    ("size", "card", "method"),
    [("1B", 24, "lora"), ("7B", 80, "lora"), ("7B", 12, "qlora"), ("13B", 24, "qlora")],
)
def test_it_fits_the_card(size: str, card: int, method: str) -> None:
    chosen = choose(base_of(size), ROWS, cuda=True, gpu_bytes=card * GIB)
    assert chosen.fits
    assert chosen.memory.full <= 0.9 * card * GIB
    assert chosen.spec.lora.method == method
    assert chosen.spec.precision == "bfloat16"
    assert chosen.batch.effective == 16


def test_what_costs_least_time_is_tried_first() -> None:
    def on(card: int) -> tuple[int, bool, str]:
        spec = choose(base_of("7B"), replace(ROWS, longest=1024), cuda=True, gpu_bytes=card * GIB).spec
        return spec.batch_size, spec.gradient_checkpointing, spec.lora.method

    assert on(141) == (16, False, "lora")
    assert on(48) == (4, False, "lora")
    assert on(16) == (2, True, "lora")
    assert on(12) == (8, True, "qlora")


def test_what_does_not_fit_is_told_and_not_changed() -> None:
    chosen = choose(base_of("7B"), ROWS, cuda=True, gpu_bytes=8 * GIB, given={"method": "lora"})
    assert chosen.fits is False
    assert (chosen.spec.lora.method, chosen.spec.batch_size) == ("lora", 1)
    assert chosen.spec.gradient_checkpointing


def test_rows_longer_than_the_base_reads() -> None:
    chosen = choose(base_of("7B"), replace(ROWS, longest=5000))
    assert chosen.spec.max_length == 4096
    assert "the base reads no more" in chosen.reasons["max_length"]
    assert chosen.tokens == 4096


def test_without_a_card_a_pass_is_small_enough_for_any() -> None:
    chosen = choose(base_of("7B"), replace(ROWS, longest=4000))
    assert (chosen.spec.batch_size, chosen.spec.accumulation) == (2, 8)
    assert chosen.fits is None


def test_rows_for_preferences_and_classes_choose_their_task() -> None:
    assert choose(base_of("1B"), replace(ROWS, objective="dpo")).spec.objective == "dpo"
    assert choose(base_of("1B"), replace(ROWS, task="SEQ_CLS")).spec.task == "SEQ_CLS"


def test_the_arithmetic_needs_no_torch() -> None:
    code = (
        "import sys; from training.plan import BaseFacts, Linear, RowFacts, choose; "
        "linear = Linear('layers.0.q', 8, 8); "
        "base = BaseFacts('b', 'llama', 8, 1, 1, 8, 8, 16, 3, 9, 64, {'layers.0.q.weight': 64}, (linear,), "
        "everywhere=('layers.0.q',), active=64); "
        "print(choose(base, RowFacts(10, 100, 12, 50)).spec.lora.rank, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "8 False\n"
