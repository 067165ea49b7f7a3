"""Throughput as a bar chart: a static SVG, drawn from the JSON files alone."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from bench.reports import Cases, Reports
from bench.rounds import spread, values
from bench.targets import RATE, SHAPES, fastest
from bench.throughput import VLLM_BASE, VLLM_MIXED

_OURS, _THEIRS = "#2563a8", "#9aa5b1"
_WIDTH, _LABEL, _VALUE = 760, 250, 150  # of the drawing, of the labels left, of the numbers right
_BAR, _STEP, _TITLE = 18, 28, 44


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a median with the least and the greatest of its runs."""

    label: str
    middle: float
    least: float
    most: float
    ours: bool


def throughput_chart(reports: Reports) -> str | None:
    """One panel for each shape that was measured; None if none was."""
    panels = [
        (f"{shape}: generated tokens per second, 8 clients", bars_of(report["cases"]))
        for shape in SHAPES
        if (report := reports.get(("throughput", shape)))
    ]
    return draw(panels) if panels else None


def bars_of(cases: Cases) -> list[Bar]:
    """Ours and the peers', base first, then eight adapters; peers that were not measured are left out."""
    shown = [
        ("Multilora, base", "base", True),
        ("vLLM CPU build, base, LoRA off", VLLM_BASE, False),
        ("transformers generate, in process", fastest(cases, "PEFT: generate"), False),
        ("Multilora, 8 adapters", "8 adapters", True),
        ("vLLM CPU build, 8 adapters", VLLM_MIXED, False),
        ("PEFT mixed batch, in process", fastest(cases, "PEFT: mixed"), False),
    ]
    return [
        Bar(label, *spread(values(cases, case, RATE)), ours) for label, case, ours in shown if cases.get(case)
    ]


def draw(panels: list[tuple[str, list[Bar]]]) -> str:
    """The panels one below the other, each with its own scale."""
    height = sum(_TITLE + _STEP * len(bars) for _, bars in panels) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    top = 0.0
    for title, bars in panels:
        lines.append(f'<text x="12" y="{top + 28}" font-size="15" font-weight="bold">{escape(title)}</text>')
        top += _TITLE
        scale = (_WIDTH - _LABEL - _VALUE) / max(bar.most for bar in bars)
        for bar in bars:
            lines += _draw_bar(bar, top, scale)
            top += _STEP
    return "\n".join([*lines, "</svg>"]) + "\n"


def _draw_bar(bar: Bar, top: float, scale: float) -> list[str]:
    middle, colour = top + _BAR / 2, _OURS if bar.ours else _THEIRS
    least, most = _LABEL + bar.least * scale, _LABEL + bar.most * scale
    numbers = f"{bar.middle:.0f} ({bar.least:.0f} to {bar.most:.0f})"
    return [
        f'<text x="{_LABEL - 10}" y="{middle + 4.5}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect x="{_LABEL}" y="{top}" width="{bar.middle * scale:.1f}" height="{_BAR}" fill="{colour}"/>',
        f'<path d="M{least:.1f} {middle}H{most:.1f}" stroke="#222" stroke-width="1.5"/>',
        f'<text x="{most + 8:.1f}" y="{middle + 4.5}">{numbers}</text>',
    ]
