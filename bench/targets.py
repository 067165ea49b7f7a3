"""What the figures must reach, each as a function of the raw runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.dora import DORA, LORA
from bench.fine_tuning import TASKS
from bench.floor import case_name
from bench.gpu import BATCHES
from bench.joint import LOOP, ON_SHIPPED, PROCESSES, TOGETHER, TRAINER
from bench.load import median
from bench.reports import Cases, Reports
from bench.rounds import ratios, values
from bench.shapes import SHIPPED
from bench.throughput import BESIDE_VLLM, VLLM_BASE, VLLM_MIXED
from bench.training_beside import ALONE, BESIDE, UNBOUNDED

RATE = "tokens_per_second"
SHAPES = ("135m", "0.5b")


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the table.

    Attributes:
        text: what is measured.
        value: one figure for each round, from the cases of `measure`; none where a peer is missing.
        bound: what the median must reach; None is only reported.
        at_least: whether `bound` is the least or the greatest that is allowed.
        unit: printed behind each figure.
    """

    text: str
    measure: str
    shape: str
    value: Callable[[Cases], list[float]]
    bound: float | None
    at_least: bool = True
    unit: str = "x"

    def figures(self, reports: Reports) -> list[float]:
        report = reports.get((self.measure, self.shape))
        return self.value(report["cases"]) if report else []

    def reached(self, figures: list[float]) -> bool | None:
        """None if there is nothing to compare."""
        if not figures or self.bound is None:
            return None
        found = median(figures)
        return found >= self.bound if self.at_least else found <= self.bound


def fastest(cases: Cases, prefix: str) -> str:
    """Of the cases whose names begin so, the one with the highest median rate; empty if there is none."""
    names = [name for name in cases if name.startswith(prefix)]
    return max(names, key=lambda name: median(values(cases, name, RATE)), default="")


def _rate(above: str, below: str) -> Callable[[Cases], list[float]]:
    return lambda cases: ratios(cases, above, below, RATE)


def _figure(case: str, figure: str, scale: float = 1.0) -> Callable[[Cases], list[float]]:
    return lambda cases: [scale * value for value in values(cases, case, figure)]


def _to_peft(cases: Cases) -> list[float]:
    return ratios(cases, "8 adapters", fastest(cases, "PEFT: mixed"), RATE)


def _bounds(bounds: dict[str, float]) -> Iterator[tuple[str, float | None]]:
    """Each shape with its bound; a shape without one is only reported."""
    return ((shape, bounds.get(shape)) for shape in SHAPES)


def targets() -> list[Target]:
    """Every row, in the order of the table."""
    rows: list[Target] = []

    def add(
        text: str,
        measure: str,
        value: Callable[[Cases], list[float]],
        bounds: dict[str, float],
        *,
        most: bool = False,
        unit: str = "x",
    ) -> None:
        for shape, bound in _bounds(bounds):
            rows.append(Target(text, measure, shape, value, bound, not most, unit))

    half = "0.5b"
    add(
        "base-only, 8 clients, against vLLM's CPU build with LoRA off",
        "throughput",
        _rate(BESIDE_VLLM, VLLM_BASE),
        {"135m": 2.0, half: 1.4},
    )
    add(
        "8 adapters, 8 clients, against vLLM's CPU build",
        "throughput",
        _rate("8 adapters", VLLM_MIXED),
        {"135m": 10.0, half: 12.0},
    )
    add(
        "8 adapters, 8 clients, against PEFT's mixed batch in process (its faster type)",
        "throughput",
        _to_peft,
        {"135m": 3.5, half: 3.5},
    )
    add("8 adapters against base, 8 clients", "throughput", _rate("8 adapters", "base"), {half: 0.85})
    add(
        "8 adapters against base, 32 clients",
        "throughput",
        _rate("8 adapters, 32 clients", "base, 32 clients"),
        {half: 0.80},
    )
    add(
        "32 adapters against base, 32 clients",
        "throughput",
        _rate("32 adapters, 32 clients", "base, 32 clients"),
        {half: 0.65},
    )
    for text, figure in (("first token", "first_token"), ("decode", "between_tokens")):
        add(
            f"one request with one adapter against base, {text}",
            "single",
            lambda cases, figure=figure: ratios(cases, "base", "1 adapter", figure),  # type: ignore[misc]
            {half: 0.90},
        )
    add(
        "8 active adapters of 1,000 (Zipf) against 8 of 8",
        "zipf",
        _rate("8 of 1000", "8 of 8"),
        dict.fromkeys(SHAPES, 0.95),
    )
    add(
        "decode step of 8 DoRA adapters against 8 LoRA adapters of the same rank",
        "dora",
        lambda cases: ratios(cases, DORA, LORA, "step"),
        dict.fromkeys(SHAPES, 1.2),
        most=True,
    )
    add("merged against base", "merged", _rate("merged", "base"), dict.fromkeys(SHAPES, 0.98))
    add(
        "prompt of 1,500 tokens among 8 running: their worst gap, in decode steps",
        "long-prompt",
        _figure("base", "steps"),
        dict.fromkeys(SHAPES, 3.0),
        most=True,
        unit="",
    )
    for case, bound in (("1 request", 1.6), ("32 requests", 2.2)):
        add(
            f"decode step of {case} against the floor",
            "floor",
            _figure(case, "times_floor"),
            dict.fromkeys(SHAPES, bound),
            most=True,
        )
    add(
        "share of a step of 32 requests outside the model",
        "floor",
        _figure("32 requests", "overhead", 100),
        dict.fromkeys(SHAPES, 10.0),
        most=True,
        unit="%",
    )
    add(
        "longest delay of the event loop, 32 clients",
        "heartbeat",
        _figure("base, 32 clients", "longest", 1000),
        dict.fromkeys(SHAPES, 10.0),
        most=True,
        unit=" ms",
    )
    add(
        "an adapter file of 35 MB from the page cache to ready",
        "adapter-load",
        _figure("load", "milliseconds"),
        dict.fromkeys(SHAPES, 20.0),
        most=True,
        unit=" ms",
    )
    add("upload to first token", "hot-swap", _figure("upload", "first_token"), {}, unit=" s")
    add(
        "worst gap between tokens of others while versions are published",
        "hot-swap",
        _figure("while publishing", "worst", 1000),
        {},
        unit=" ms",
    )
    add(
        "the same against their worst gap while nothing is published",
        "hot-swap",
        lambda cases: ratios(cases, "while publishing", "quiet", "worst"),
        {},
    )
    for job in (BESIDE, UNBOUNDED):
        for text, figure in (
            ("first token", "first_token_p99"),
            ("gap between tokens", "between_tokens_p99"),
        ):
            add(
                f"{text}, 99%, beside {job} that trains against without",
                "training-beside",
                lambda cases, job=job, figure=figure: ratios(cases, job, ALONE, figure),  # type: ignore[misc]
                {},
            )
        steps = _figure(job, "steps_per_second")
        add(f"steps of {job} beside these requests", "training-beside", steps, {}, unit="/s")
    add("start to ready, base", "startup", _figure("base", "ready"), {}, unit=" s")
    add("start to ready, 8 adapters", "startup", _figure("8 adapters", "ready"), {}, unit=" s")
    return rows + _training_targets() + _joint_targets() + _gpu_targets()


def _training_targets() -> list[Target]:
    """What a tenant who trains gets."""
    figures: tuple[tuple[str, str, float | None, bool, str], ...] = (
        ("training", "training", 60, False, " s"),
        ("from the upload to a live adapter", "seconds_to_live", None, False, " s"),
        ("held-out exact match of the base", "base", 0.1, False, ""),
        ("held-out exact match of the adapter", "adapter", 0.9, True, ""),
    )
    return [
        Target(f"a job, {task}: {text}", "fine-tuning", SHIPPED, _figure(task, figure), bound, at_least, unit)
        for task in TASKS
        for text, figure, bound, at_least, unit in figures
    ]


def _joint_targets() -> list[Target]:
    """What training together gains: the others' time and memory over its own."""
    others = (
        ("one after another by transformers' Trainer", TRAINER, "wall", "time"),
        ("one after another in the same loop", LOOP, "wall", "time"),
        ("a process each, at once", PROCESSES, "wall", "time"),
        ("a process each, at once", PROCESSES, "peak", "memory"),
    )
    return [
        Target(
            f"training 8 adapters together{where} against {text}: {what}",
            "joint",
            "135m",
            lambda cases, prefix=prefix, other=other, figure=figure: ratios(  # type: ignore[misc]
                cases, f"{prefix}{other}", f"{prefix}{TOGETHER}", figure
            ),
            None,
        )
        for prefix, where in (("", ""), (ON_SHIPPED, " on the shipped base"))
        for text, other, figure, what in others
    ]


def _gpu_targets() -> list[Target]:
    """Ratios of step times: what was faster is above."""

    def row(text: str, value: Callable[[Cases], list[float]], bound: float | None = None) -> Target:
        return Target(f"GPU: {text}", "gpu", "7b", value, bound)

    base = "32 requests"
    rows = [
        row(
            f"decode step of {case_name(batch)} against the roofline",
            _figure(case_name(batch), "times_floor"),
        )
        for batch in BATCHES
    ]
    for text, above, below, bound in (
        ("32 adapters against base, 32 requests", base, f"{base}, 32 adapters", 0.90),
        ("base with LoRA support against without", f"{base}, no LoRA support", base, 0.98),
    ):
        rows.append(
            row(text, lambda cases, above=above, below=below: ratios(cases, above, below, "step"), bound)  # type: ignore[misc]
        )
    kernels = "kernels, 32 rows, 32 adapters"
    rows.append(
        row(
            "LoRA kernels against torch.bmm, 32 rows",
            lambda cases: ratios(cases, kernels, kernels, "bmm", "kernels"),
        )
    )
    rows.append(row("LoRA kernels against the byte floor, 32 rows", _figure(kernels, "times_floor")))
    return rows
