"""The table of a benchmark, from its raw numbers."""

from __future__ import annotations

from typing import Any

from bench.__main__ import table


def report() -> dict[str, Any]:
    def run(rate: float) -> dict[str, float]:
        return {"tokens_per_second": rate, "first_token": 0.05, "between_tokens": 0.01, "worst_gap": 0.1}

    return {
        "over HTTP": {"base": [run(90), run(110), run(100)], "8 adapters": [run(80)]},
        "in process": {
            "generate, float32": [60.0],
            "mixed, bfloat16": [5.0],
            "mixed, float32": [20.0, 40.0, 25.0],
        },
    }


def test_medians_and_ratios_to_the_faster_of_pefts_mixed_batches() -> None:
    rows = {row.split("|")[1].strip(): row for row in table(report()).splitlines()[2:]}

    assert "100" in rows["base"]
    assert "4.00" in rows["base"]
    assert "3.20" in rows["8 adapters"]
    assert "1.00" in rows["PEFT in process: mixed, float32"]
