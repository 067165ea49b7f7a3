"""The curves of a run as one picture: loss, scores, learning rate and gradient norm over the steps."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from training.events import Evaluated, Progress
from training.report.curves import Curves, smoothed

_TRAINING, _VALIDATION, _SCORE, _RATE, _NORM = "#1f6fb2", "#d1495b", "#2a9d5c", "#7a5195", "#b0883a"
_WIDTH, _PANEL_HEIGHTS = 9.0, (3.6, 2.4, 2.2)
_DOTS_PER_INCH = 110
_SMOOTHED_OVER = 30
_LOG_FROM = 30.0
"""A line whose ends lie further apart than this factor is drawn on a logarithmic scale."""
_POINT = TypeVar("_POINT", Progress, Evaluated)


def draw(curves: Curves, path: Path, title: str = "") -> None:
    """Write a PNG; it is there whole or not at all. Needs no display.

    Raises:
        ValueError: there is no step to draw.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and looks for a display

    if not curves.progress:
        raise ValueError("there is no step to draw")
    fills = [_losses, _scores, _rates] if _has_scores(curves) else [_losses, _rates]
    heights = _PANEL_HEIGHTS if _has_scores(curves) else (_PANEL_HEIGHTS[0], _PANEL_HEIGHTS[2])
    figure = Figure((_WIDTH, sum(heights)), dpi=_DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(len(fills), 1, sharex=True, height_ratios=heights)
    for panel, fill in zip(panels, fills, strict=True):
        panel.grid(alpha=0.25)
        panel.spines["top"].set_visible(False)
        fill(panel, curves)
    figure.suptitle(title, fontsize=11)
    panels[-1].set_xlabel("optimizer step")
    panels[-1].set_xlim(0, curves.progress[-1].step + 1)
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png")
    os.replace(part, path)


def _losses(panel: Any, curves: Curves) -> None:
    steps, losses = _points(curves.progress, lambda each: each.loss)
    smooth = smoothed(losses, len(losses) // _SMOOTHED_OVER)
    panel.plot(steps, losses, color=_TRAINING, alpha=0.3, linewidth=0.8, label="training, each step")
    panel.plot(steps, smooth, color=_TRAINING, linewidth=1.8, label="training, smoothed")
    at, found = _points(curves.evaluated, lambda each: each.loss)
    if at:
        panel.plot(at, found, "o-", color=_VALIDATION, linewidth=1.6, markersize=4, label="validation")
    if (best := curves.best) is not None:
        label = f"best validation: {best.loss:.3g} at step {best.step}"
        panel.plot(
            [best.step], [best.loss], "*", color=_VALIDATION, markersize=13, label=label, clip_on=False
        )
    _scale(panel, [*smooth, *found])
    panel.set_ylabel("loss (nats, mean)")
    _legend(panel)


def _scores(panel: Any, curves: Curves) -> None:
    steps, right = _points(curves.progress, lambda each: each.token_accuracy)
    if steps:
        smooth = smoothed(right, len(right) // _SMOOTHED_OVER)
        panel.plot(steps, smooth, color=_TRAINING, linewidth=1.4, label="tokens, training")
    at, found = _points(curves.evaluated, lambda each: each.token_accuracy)
    if at:
        panel.plot(
            at, found, "o-", color=_VALIDATION, linewidth=1.4, markersize=3, label="tokens, validation"
        )
    for metric in sorted({each.metric for each in curves.evaluated} - {"token_accuracy"}):
        of_metric = [each for each in curves.evaluated if each.metric == metric]
        at, found = _points(of_metric, lambda each: each.score)
        label = metric.replace("_", " ") + ", validation"
        panel.plot(at, found, "s-", color=_SCORE, linewidth=1.8, markersize=4, label=label)
    panel.set_ylim(-0.03, 1.03)
    panel.set_ylabel("share that is right (0 to 1)")
    _legend(panel)


def _rates(panel: Any, curves: Curves) -> None:
    steps, norms = _points(curves.progress, lambda each: each.gradient_norm)
    panel.plot(steps, norms, color=_NORM, alpha=0.7, linewidth=0.9)
    _scale(panel, norms)
    panel.set_ylabel("gradient norm\nbefore clipping", color=_NORM)
    right = panel.twinx()
    right.spines["top"].set_visible(False)
    steps, rates = _points(curves.progress, lambda each: each.learning_rate)
    right.plot(steps, rates, color=_RATE, linewidth=1.8)
    right.set_ylim(bottom=0)
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    right.set_ylabel("learning rate", color=_RATE)


def _legend(panel: Any) -> None:
    """Above the panel, where it hides no line."""
    panel.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, ncols=4, fontsize=9)


def _scale(panel: Any, values: Iterable[float]) -> None:
    """Logarithmic where the values need it; else from 0."""
    values = [value for value in values if value > 0]
    if values and max(values) > _LOG_FROM * min(values):
        panel.set_yscale("log")
        panel.set_ylim(bottom=min(values) / 2)
    else:
        panel.set_ylim(bottom=0)


def _points(
    events: Iterable[_POINT], value: Callable[[_POINT], float | None]
) -> tuple[list[int], list[float]]:
    """Steps and values, as far as there is a number."""
    found = [(each.step, number) for each in events if (number := value(each)) is not None]
    found = [(step, number) for step, number in found if math.isfinite(number)]
    return [step for step, _ in found], [number for _, number in found]


def _has_scores(curves: Curves) -> bool:
    values = [each.token_accuracy for each in curves.progress]
    values += [value for each in curves.evaluated for value in (each.token_accuracy, each.score)]
    return any(value is not None for value in values)
