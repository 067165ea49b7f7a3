"""The tables of `docs/variants.md`, made from the results."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.matrix.cells import Cell
from tests.matrix.families import FAMILIES
from tests.matrix.results import Cells
from tests.matrix.variants import VARIANTS

PAGE = Path(__file__).parents[2] / "docs" / "variants.md"
_BEGIN, _END = "<!-- matrix:begin -->", "<!-- matrix:end -->"


def fill(text: str, results: Mapping[str, Cells]) -> str:
    """`text` with the tables between the markers."""
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    return f"{before}{_BEGIN}\n{tables(results)}\n{_END}{after}"


def tables(results: Mapping[str, Cells]) -> str:
    """Both tables, and why there is nothing in some of their cells."""
    reasons = _reasons(results)

    def full(cell: Cell) -> str:
        return f"{1e6 * (cell.difference or 0):.1f}{'' if cell.holds else ' **fails**'}"

    def half(cell: Cell) -> str:
        return "-" if cell.ours is None or not cell.theirs else f"{cell.ours / cell.theirs:.1f}"

    parts = [
        "### float32",
        _table(results, full, reasons),
        "### bfloat16",
        _table(results, half, reasons),
        "### Where there is nothing to compare",
        "\n".join(
            ["| | |", "|---|---|", *(f"| {number} | {reason} |" for reason, number in reasons.items())]
        ),
    ]
    return "\n\n".join(parts)


def _table(results: Mapping[str, Cells], show: Callable[[Cell], str], reasons: Mapping[str, int]) -> str:
    titles = [family.title for family in FAMILIES.values()]
    rows = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for variant in VARIANTS:
        cells = [results[family].get(variant) for family in FAMILIES]
        texts = [
            "?" if cell is None else f"- ({reasons[_general(cell.absent)]})" if cell.absent else show(cell)
            for cell in cells
        ]
        rows.append(f"| {variant} | {' | '.join(texts)} |")
    return "\n".join(rows)


def _reasons(results: Mapping[str, Cells]) -> dict[str, int]:
    """Each reason once, with its number."""
    found = [
        cell.absent for variant in VARIANTS for cells in results.values() if (cell := cells.get(variant))
    ]
    different = dict.fromkeys(_general(reason) for reason in found if reason)
    return {reason: number for number, reason in enumerate(different, start=1)}


def _general(reason: str) -> str:
    """The same for modules of the same kind."""
    return re.sub(r"\.\d+\.", ".0.", reason)
