"""A part of the matrix is measured anew, and the page is of the matrix as it is now."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.matrix.cells import Cell, measure
from tests.matrix.families import FAMILIES
from tests.matrix.page import PAGE, fill
from tests.matrix.results import read_results
from tests.matrix.variants import VARIANTS

RESULTS = read_results()
AGAIN = "run python -m tests.matrix"


def chosen() -> dict[str, list[str]]:
    """Variants by family: each twice, where least are so far; and all that are refused, by PEFT or here."""
    found: dict[str, list[str]] = {
        family: [variant for variant, cell in cells.items() if ":" in (cell.absent or "")]
        for family, cells in RESULTS.items()
    }
    picked: Counter[str] = Counter()
    for variant in VARIANTS:
        there = [family for family, cells in RESULTS.items() if _is_measured(cells.get(variant))]
        for family in sorted(there, key=lambda family: picked[family])[:2]:
            picked[family] += 1
            found[family].append(variant)
    return found


def _is_measured(cell: Cell | None) -> bool:
    return cell is not None and cell.absent is None


def test_the_results_are_of_these_variants_and_families() -> None:
    assert {family: [*cells] for family, cells in RESULTS.items()} == {key: [*VARIANTS] for key in FAMILIES}


def test_the_page_shows_the_results() -> None:
    text = PAGE.read_text()
    assert text == fill(text, RESULTS), AGAIN


def test_every_result_is_within_the_tolerances() -> None:
    assert [(f, v) for f, cells in RESULTS.items() for v, cell in cells.items() if not cell.holds] == []


def test_the_chosen_part_has_everything_twice() -> None:
    pairs = [(f, v) for f, variants in chosen().items() for v in variants if _is_measured(RESULTS[f][v])]
    assert min(Counter(family for family, _ in pairs)[family] for family in FAMILIES) >= 2
    assert min(Counter(variant for _, variant in pairs)[variant] for variant in VARIANTS) >= 2


@pytest.mark.parametrize("family", FAMILIES)
def test_cells(family: str, tmp_path: Path) -> None:
    for variant, cell in measure(family, chosen()[family], tmp_path).items():
        assert cell.absent == RESULTS[family][variant].absent, (variant, AGAIN)
        assert cell.holds, (variant, cell)
