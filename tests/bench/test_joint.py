"""The ways to train 8 adapters: they give the same, and ratios are the others' over ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import joint
from bench.joint import ADAPTERS, LOOP, ON_SHIPPED, PROCESSES, TOGETHER, TRAINER, inside, measure_joint
from bench.rounds import Figures
from bench.setting import Bench
from bench.targets import targets


def test_a_base_too_large_for_a_process_each_is_left_out(tmp_path: Path) -> None:
    done = measure_joint(Bench("0.5b", tmp_path))
    assert not done.cases
    assert "smaller shape" in done.notes[0]


@pytest.mark.parametrize("quick", [False, True])
def test_every_case_trains_all_adapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: bool) -> None:
    asked: list[dict[str, Any]] = []

    def child(module: str, job: dict[str, Any], folder: Path) -> Figures:
        assert (module, Path(job["folder"])) == ("joint", folder)
        assert folder.is_dir()
        asked.append(job)
        return {"wall": 1.0 + job["seeds"][0], "peak": 2.0, "loss": 3.0}

    monkeypatch.setattr(joint, "run_child", child)
    done = measure_joint(Bench("tiny", tmp_path, repeats=1, quick=quick))
    ways = (TOGETHER, LOOP, TRAINER, PROCESSES)
    bases, count = (("",), 2) if quick else (("", ON_SHIPPED), ADAPTERS)
    assert list(done.cases) == [f"{base}{way}" for base in bases for way in ways]
    assert len(asked) == len(bases) * (3 + count)
    assert all(len(job["seeds"]) == count for job in asked if "threads" not in job)
    (processes,) = done.cases[PROCESSES]
    assert (processes["wall"], processes["peak"], processes["loss"]) == (count, 2.0 * count, 3.0)


def test_all_ways_end_with_the_same_losses(tmp_path: Path) -> None:
    job = {"base": "", "rank": 2, "steps": 2, "batch": 2, "seeds": [0, 1]}
    found = {
        how: inside({**job, "how": how, "folder": str(tmp_path / how)}) for how in (TOGETHER, LOOP, TRAINER)
    }
    for figures in found.values():
        assert figures["loss"] == pytest.approx(found[TRAINER]["loss"], rel=1e-5)
        assert figures["wall"] > 0
        assert figures["peak"] > 1e8


def test_gains_are_the_others_time_and_memory_over_ours() -> None:
    def runs(wall: float, peak: float) -> list[Figures]:
        return [{"round": 0.0, "wall": wall, "peak": peak}]

    cases = {TOGETHER: runs(2, 3), TRAINER: runs(8, 4), LOOP: runs(6, 4), PROCESSES: runs(5, 30)}
    rows = [row for row in targets() if row.measure == "joint" and "shipped" not in row.text]
    assert [row.value(cases) for row in rows] == [[4], [3], [2.5], [10]]
