"""Cases in turn, and ratios within a round."""

from __future__ import annotations

import itertools

import pytest

from bench import rounds
from bench.rounds import Case, ratios, run_rounds


def test_cases_alternate_and_the_warm_round_is_not_recorded() -> None:
    seen: list[tuple[str, int]] = []

    def case(name: str) -> Case:
        def run(number: int) -> dict[str, float]:
            seen.append((name, number))
            return {"rate": float(number)}

        return run

    done = run_rounds({"a": case("a"), "b": case("b")}, 2)

    assert seen == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [run["rate"] for run in done.cases["a"]] == [0, 1]
    assert [run["round"] for run in done.cases["b"]] == [0, 1]
    assert len(done.foreign_cores) == 2
    assert not done.notes


def test_a_slow_case_gets_fewer_rounds_and_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=10)
    monkeypatch.setattr("bench.rounds.time.perf_counter", lambda: next(ticks))
    done = run_rounds({"slow": lambda number: {}}, 4, patience=9)

    assert len(done.cases["slow"]) == rounds.SLOW_ROUNDS
    assert len(done.notes) == 1
    assert "slow" in done.notes[0]


def test_ratios_are_taken_within_a_round() -> None:
    cases = {
        "ours": [{"round": 0.0, "rate": 10.0}, {"round": 1.0, "rate": 90.0}, {"round": 2.0, "rate": 7.0}],
        "theirs": [{"round": 1.0, "rate": 30.0}, {"round": 0.0, "rate": 5.0}],
    }
    assert ratios(cases, "ours", "theirs", "rate") == [2.0, 3.0]
    assert ratios(cases, "ours", "nobody", "rate") == []


def test_the_spread() -> None:
    assert rounds.spread([3.0, 9.0, 1.0]) == (3.0, 1.0, 9.0)
