"""Cases measured in turn, round after round, so that noise falls on all of them alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.load import median
from bench.machine import CpuTimes, foreign_cores

WARM = -1
"""The number of the round that warms up and is not recorded."""
SLOW_ROUNDS = 2
Figures = dict[str, float]
Case = Callable[[int], Figures]
"""Measures once; takes the number of the round."""


@dataclass
class Rounds:
    """What was measured.

    Attributes:
        cases: for each case the figures of its rounds, each with its `round` and how many `seconds` it took.
        foreign_cores: for each round, cores that processes other than ours used meanwhile.
        notes: what a reader of the figures must know.
    """

    cases: dict[str, list[Figures]] = field(default_factory=dict)
    foreign_cores: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Rounds) -> None:
        """Take over what was measured beside this."""
        self.cases |= other.cases
        self.foreign_cores += other.foreign_cores
        self.notes += other.notes

    def as_json(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "foreign cores": [round(value, 3) for value in self.foreign_cores],
            "notes": self.notes,
        }


def run_rounds(
    cases: Mapping[str, Case], repeats: int, *, patience: float = float("inf"), warm: bool = True
) -> Rounds:
    """Every case once in each of `repeats` rounds, after one unrecorded round.

    A case that takes longer than `patience` seconds is measured in `SLOW_ROUNDS` rounds only, and a note
    says so.
    """
    done = Rounds({case: [] for case in cases})
    slow: set[str] = set()
    for number in range(WARM if warm else 0, repeats):
        before = CpuTimes.now()
        for name, case in cases.items():
            if name in slow and number >= SLOW_ROUNDS:
                continue
            started = time.perf_counter()
            figures = case(number)
            seconds = time.perf_counter() - started
            if number > WARM:
                done.cases[name].append({"round": number, "seconds": seconds, **figures})
                if seconds > patience and repeats > SLOW_ROUNDS and name not in slow:
                    slow.add(name)
                    done.notes.append(
                        f"{name}: {SLOW_ROUNDS} repeats only, as one takes {seconds:.0f} seconds"
                    )
        if number > WARM:
            done.foreign_cores.append(foreign_cores(before, CpuTimes.now()))
        say(f"  round {number + 1} of {repeats} done")
    return done


def say(text: str) -> None:
    """Progress for whoever waits; results go to standard output and files."""
    print(text, file=sys.stderr, flush=True)


def values(cases: Mapping[str, list[Figures]], case: str, figure: str) -> list[float]:
    """One figure of a case in each round it ran."""
    return [run[figure] for run in cases.get(case, [])]


def ratios(
    cases: Mapping[str, list[Figures]], above: str, below: str, figure: str, below_figure: str = ""
) -> list[float]:
    """`above / below` in each round in which both ran: what slowed the one slowed the other too."""
    bottoms = {run["round"]: run[below_figure or figure] for run in cases.get(below, [])}
    return [run[figure] / bottoms[run["round"]] for run in cases.get(above, []) if bottoms.get(run["round"])]


def spread(figures: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return median(figures), min(figures), max(figures)
