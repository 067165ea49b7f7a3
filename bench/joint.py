"""What it gains to train 8 adapters together: time and memory, against one after another and a process each.

Of random weights in the shape that is measured, and of the shipped base. Each case runs in processes of its
own, so that the peak of memory is its own too; all of them end with the same adapters.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.child import run_child
from bench.rounds import Case, Figures, Rounds, run_rounds
from bench.setting import Bench
from bench.shapes import cost

if TYPE_CHECKING:
    from training.joint import JointJob
    from training.run import RunResult

ADAPTERS = 8
TOGETHER, LOOP, TRAINER, PROCESSES = "together", "in turn", "in turn, by Trainer", "a process each"
ON_SHIPPED = "shipped base, "
"""What the names of its cases begin with."""
LARGEST = 200e6
"""Parameters of a base of which there is room for `ADAPTERS` copies in float32."""
_QUICK_ADAPTERS = 2
_ROUNDS = 3
_WORDS = 64
"""Tokens of a row, about."""


def measure_joint(bench: Bench) -> Rounds:
    """Each case trains the same `ADAPTERS` adapters; ratios are of their `wall` and `peak`.

    A quick one leaves out the shipped base and most of the adapters: each process takes seconds to import.
    """
    if cost(bench.shape).weights > LARGEST:
        return Rounds(
            notes=[f"a process each would need {ADAPTERS} copies of this base: see a smaller shape"]
        )
    shaped = _job(bench, str(bench.base), steps=4, batch=2)
    shipped = _job(bench, "", steps=100, batch=16)
    cases = _cases(bench, shaped)
    if not bench.quick:
        cases |= {f"{ON_SHIPPED}{name}": case for name, case in _cases(bench, shipped).items()}
    done = run_rounds(cases, min(bench.repeats, _ROUNDS), patience=bench.patience, warm=False)
    done.notes.append(
        f"{ADAPTERS} adapters of rank {bench.rank}; {shaped['steps']} steps of {shaped['batch']} rows each, "
        f"{shipped['steps']} of {shipped['batch']} on the shipped base; float32; wall: loading and saving "
        "included; a process each: as many at once"
    )
    return done


def _job(bench: Bench, base: str, *, steps: int, batch: int) -> dict[str, Any]:
    """`base`: a folder; empty: the shipped one."""
    return {
        "base": base,
        "rank": bench.rank,
        "steps": 1 if bench.quick else steps,
        "batch": 1 if bench.quick else batch,
        "vocabulary": bench.vocabulary,
        "words": _WORDS,
    }


def _cases(bench: Bench, job: dict[str, Any]) -> dict[str, Case]:
    whole = range(_QUICK_ADAPTERS if bench.quick else ADAPTERS)

    def one(how: str, number: int) -> Figures:
        return _run(bench, {**job, "how": how, "seeds": [*whole]}, how.replace(" ", "-"))

    def each(number: int) -> Figures:
        jobs = [{**job, "how": TRAINER, "seeds": [seed], "threads": 1} for seed in whole]
        with ThreadPoolExecutor(len(whole)) as pool:
            found = list(pool.map(lambda one: _run(bench, one, f"process-{one['seeds'][0]}"), jobs))
        return {
            "wall": max(figures["wall"] for figures in found),
            "peak": sum(figures["peak"] for figures in found),
            "loss": sum(figures["loss"] for figures in found) / len(found),
        }

    return {**{how: partial(one, how) for how in (TOGETHER, LOOP, TRAINER)}, PROCESSES: each}


def _run(bench: Bench, job: dict[str, Any], name: str) -> Figures:
    """One child, in a folder that is empty when it begins."""
    folder = bench.folder / f"joint-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        found: Figures = run_child("joint", {**job, "folder": str(folder)}, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def inside(job: dict[str, Any]) -> Figures:
    """Train as `job["how"]` says; runs in the child.

    `wall`: seconds from the base's files to all adapters'; `peak`: the most bytes that it had in memory;
    `loss`: the mean of the last ones, to see that all cases learn the same.
    """
    import resource
    import time

    import torch

    if "threads" in job:
        torch.set_num_threads(job["threads"])
    from training.base import MODEL_DIR

    base = Path(job["base"] or MODEL_DIR)
    jobs = [_joint_job(job, seed) for seed in job["seeds"]]
    started = time.perf_counter()
    results = _WAYS[job["how"]](base, jobs)
    wall = time.perf_counter() - started
    return {
        "wall": wall,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        "loss": sum(result.losses[-1] for result in results) / len(results),
    }


def _joint_job(job: dict[str, Any], seed: int) -> JointJob:
    from training.joint import JointJob
    from training.run import TrainingData
    from training.spec import LoraSpec, TrainSpec

    spec = TrainSpec(
        LoraSpec(rank=job["rank"], alpha=2.0 * job["rank"]),
        steps=job["steps"],
        batch_size=job["batch"],
        learning_rate=1e-3,
        evaluate_every=job["steps"],
        seed=seed,
    )
    rows = _rows(job, seed)
    return JointJob(f"{seed}", spec, TrainingData(rows), Path(job["folder"]) / f"{seed}")


def _rows(job: dict[str, Any], seed: int) -> list[Any]:
    """Of the shipped base the demo's words; else tokens at random."""
    from training.data import TextExample
    from training.tasks import make_examples

    if not job["base"]:
        return [TextExample(item.prompt, item.completion) for item in make_examples("shout", 200, seed)]
    chance = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(f"t{chance.randrange(3, job['vocabulary'])}" for _ in range(count))

    half = job["words"] // 2
    return [TextExample(words(half), f" {words(half - chance.randrange(8))}") for _ in range(32)]


def _together(base: Path, jobs: Sequence[JointJob]) -> list[RunResult]:
    from training.joint import train_together

    done = list(train_together(base, jobs).values())
    failed = [error for error in done if isinstance(error, Exception)]
    if failed:
        raise failed[0]
    return [result for result in done if not isinstance(result, Exception)]


def _in_turn(base: Path, jobs: Sequence[JointJob]) -> list[RunResult]:
    return [result for job in jobs for result in _together(base, [job])]


def _by_trainer(base: Path, jobs: Sequence[JointJob]) -> list[RunResult]:
    from training.run import train

    return [train(job.spec, base, job.data, job.folder) for job in jobs]


_WAYS: dict[str, Callable[[Path, Sequence[JointJob]], list[RunResult]]] = {
    TOGETHER: _together,
    LOOP: _in_turn,
    TRAINER: _by_trainer,
}
