"""The page of results, made from the JSON files alone."""

from __future__ import annotations

from collections.abc import Iterator

from bench.load import median
from bench.reports import Cases, Report, Reports
from bench.rounds import spread, values
from bench.targets import RATE, Target, targets

_VERDICT = {True: "reached", False: "**missed**", None: ""}


def results_page(reports: Reports, charts: list[str]) -> str:
    """Markdown: the targets, the throughput of each case, the machine and what must be known."""
    lines = [
        "# Results",
        "",
        "Made by `python -m bench report` from the JSON files beside this page; "
        "[how they come about](README.md).",
        "Medians, with the least and the greatest of the repeats; ratios are taken within each round.",
        "",
        *target_table(reports),
        "",
    ]
    for chart in charts:
        lines += [f"![Generated tokens per second]({chart})", ""]
    for (measure, shape), report in reports.items():
        if measure == "throughput":
            lines += [f"## Tokens per second, {shape}", "", *rate_table(report["cases"]), ""]
    lines += ["## Where they come from", "", *_origins(reports)]
    return "\n".join(lines) + "\n"


def target_table(reports: Reports) -> list[str]:
    """One row for each target."""
    rows = ["| measure | shape | median (least to greatest) | target | |", "|---|---|---|---|---|"]
    return rows + [_row(target, target.figures(reports)) for target in targets()]


def _row(target: Target, figures: list[float]) -> str:
    sign = "at least" if target.at_least else "at most"
    bound = "" if target.bound is None else f"{sign} {target.bound:g}{target.unit}"
    verdict = _VERDICT[target.reached(figures)] if figures else "not measured"
    return f"| {target.text} | {target.shape} | {_with_spread(figures, target.unit)} | {bound} | {verdict} |"


def _with_spread(figures: list[float], unit: str = "") -> str:
    if not figures:
        return ""
    middle, least, most = (f"{value:.3g}" for value in spread(figures))
    return f"{middle}{unit} ({least} to {most})"


def rate_table(cases: Cases) -> list[str]:
    """Rates and times of each case."""
    rows = ["| case | tokens/s | first token, s | between tokens, ms | repeats |", "|---|---|---|---|---|"]
    for case, runs in cases.items():
        first, between = values_if(runs, "first_token"), values_if(runs, "between_tokens", 1000)
        rows.append(
            f"| {case} | {_with_spread(values(cases, case, RATE))} | {first} | {between} | {len(runs)} |"
        )
    return rows


def values_if(runs: list[dict[str, float]], figure: str, scale: float = 1.0) -> str:
    """The median of a figure, where the runs have it."""
    found = [scale * run[figure] for run in runs if figure in run]
    return f"{median(found):.3g}" if found else ""


def _origins(reports: Reports) -> Iterator[str]:
    yield "| measure | shape | date | processor | torch | cores used by others (median) | notes |"
    yield "|---|---|---|---|---|---|---|"
    for (measure, shape), report in reports.items():
        machine, noise = report["machine"], report["foreign cores"]
        others = f"{median(noise):.2f} of {machine['cores']}" if noise else ""
        notes = "; ".join(report["notes"])
        yield (
            f"| {measure} | {shape} | {report['date']} | {_processor(report)} | {machine['torch']} | "
            f"{others} | {notes} |"
        )


def _processor(report: Report) -> str:
    machine = report["machine"]
    return f"{machine['processor']}, {' '.join(machine['flags'])}"
