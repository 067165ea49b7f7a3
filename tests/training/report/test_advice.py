"""Advice: each kind of bad curve gives its own, once; healthy curves give none, with noise or without."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.training.report.synthetic import Curve, healthy, run, started
from training.events import Advised, Evaluated, Event, Finished, Progress
from training.report.advice import RULES, advise
from training.spec import LoraSpec, TrainSpec

SPEC = TrainSpec(LoraSpec(rank=8, alpha=16, dropout=0.05), learning_rate=1e-3, warmup=0.05)

HEALTHY: dict[str, tuple[Curve, Curve | None]] = {
    "usual": (healthy, lambda share: healthy(share) + 0.05),
    "without validation": (healthy, None),
    "learned at once": (lambda s: 0.02 + 4 * math.exp(-60 * s), lambda s: 0.03 + 4 * math.exp(-60 * s)),
    "a little to learn": (lambda s: 1.6 + 0.3 * math.exp(-5 * s), lambda s: 1.65 + 0.3 * math.exp(-5 * s)),
    "down, then level": (lambda s: 2 - 1.5 * min(1, s / 0.6), lambda s: 2.1 - 1.5 * min(1, s / 0.6)),
    "known before": (lambda s: 0.03, lambda s: 0.03),
    "steps down at epochs": (lambda s: 0.8 - 0.17 * int(2.99 * s), lambda s: 0.6 + 0.3 * math.exp(-4 * s)),
    "validation above and level": (healthy, lambda s: 0.6 + 1.7 * math.exp(-6 * s)),
}
BAD: dict[str, tuple[Curve, Curve | None]] = {
    "overfitting": (healthy, lambda s: 0.6 + 1.7 * math.exp(-9 * s) + 0.5 * s),
    "flat": (lambda s: 2.0, lambda s: 2.0),
    "underfit": (lambda s: 3 - 2 * s, lambda s: 3.1 - 2 * s),
    "leak": (lambda s: 1 + 2 * math.exp(-5 * s), lambda s: 0.4 + 0.8 * math.exp(-5 * s)),
    "spikes": (lambda s: healthy(s) if s < 0.4 else 3.0, None),  # up, and it stays there
}


def kinds(events: list[Event], spec: TrainSpec = SPEC) -> list[str]:
    """As a run asks: at each evaluation and at the end, what was said being among the events."""
    told: list[Event] = []
    for event in events:
        told.append(event)
        while isinstance(event, Evaluated | Finished) and (advised := advise(told, spec)) is not None:
            told.append(advised)
    return [event.kind for event in told if isinstance(event, Advised)]


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("steps", [30, 300])
def test_healthy_curves_give_none(name: str, steps: int) -> None:
    training, validation = HEALTHY[name]
    assert kinds(run(training, validation, steps=steps)) == []
    found = [kinds(run(training, validation, steps=steps, noise=0.15, seed=seed)) for seed in range(8)]
    assert found == [[]] * 8


@pytest.mark.parametrize("name", BAD)
def test_bad_curves_give_their_own_once(name: str) -> None:
    training, validation = BAD[name]
    for steps in (80, 300):
        assert kinds(run(training, validation, steps=steps)) == [name]
    found = Counter(
        kind
        for seed in range(8)
        for kind in kinds(run(training, validation, steps=300, noise=0.1, seed=seed))
    )
    assert found[name] >= 7
    assert found.total() <= 8


def test_single_jumps_are_spikes_from_the_third_on() -> None:
    for places, expected in (((90,), []), ((90, 150), []), ((90, 150, 210, 240), ["spikes"])):
        assert kinds(run(healthy, steps=300, noise=0.1, spikes=places)) == expected
    told = run(healthy, steps=300, noise=0.1, spikes=(90, 150, 210, 240))
    found = advise(told, SPEC)
    assert found is not None
    assert "4 times (steps 90, 150, 210, 240)" in found.message
    assert "learning_rate (0.0005) or alpha (8)" in found.message


def test_jumps_of_what_is_learned_are_none() -> None:
    """A hard row in a batch, when all others are learned by heart."""
    assert (
        kinds(run(lambda s: 0.004 + 3 * math.exp(-30 * s), steps=300, noise=0.1, spikes=(200, 230, 260)))
        == []
    )


def test_a_gradient_clipped_at_nearly_every_step() -> None:
    assert kinds(run(healthy, norm=lambda s: 5.0)) == ["clipped"]
    assert kinds(run(healthy, norm=lambda s: 1.5)) == []  # a little above the limit
    assert kinds(run(healthy, norm=lambda s: 5.0 * math.exp(-5 * s))) == []  # in the beginning alone
    assert kinds(run(healthy, norm=lambda s: 5.0), TrainSpec(max_grad_norm=10)) == []


def test_nothing_is_trained() -> None:
    nothing = run(lambda s: 0.0, steps=40)
    assert kinds(nothing) == ["nothing_trained"]
    found = advise(nothing, SPEC)
    assert found is not None
    assert "train preview" in found.message
    assert kinds(run(lambda s: 2.0, steps=40, norm=lambda s: 0.0))[0] == "nothing_trained"
    assert kinds(run(lambda s: 3 * math.exp(-40 * s), steps=40)) == []  # to 0, but not from there


def test_a_good_score_is_no_underfit() -> None:
    training, validation = BAD["underfit"]
    events = [
        Evaluated(event.step, event.loss, None, "exact_match", 0.97)
        if isinstance(event, Evaluated)
        else event
        for event in run(training, validation)
    ]
    assert kinds(events) == []


def test_a_run_that_is_not_over_is_no_underfit() -> None:
    training, validation = BAD["underfit"]
    begun = [event for event in run(training, validation, steps=100) if getattr(event, "step", 0) < 100]
    assert kinds([*begun, Finished(99, "stopped", 1.0, 1.0, 1)]) == []


def test_advice_names_what_to_do_with_numbers_of_this_run() -> None:
    expected = {
        "overfitting": ("dropout (0.1)", "rank (4)", "patience=3", "step 120"),
        "flat": ("learning_rate (0.003)", "alpha (32)"),
        "underfit": ("epochs (6)", "learning_rate (0.002)"),
        "leak": ("train check",),
    }
    for name, parts in expected.items():
        training, validation = BAD[name]
        found = advise(run(training, validation, steps=300), SPEC)
        assert found is not None
        assert (found.kind, found.step) == (name, 300)
        for part in parts:
            assert part in found.message, found.message


def test_a_resumed_run_is_advised_once() -> None:
    """What was said before the kill is in the events that the run goes on with."""
    training, validation = BAD["overfitting"]
    events = run(training, validation, steps=300, finished=None)
    told: list[Event] = [*events, *filter(None, [advise(events, SPEC)]), started(300, 300)]
    assert isinstance(told[-2], Advised)
    assert advise(told, SPEC) is None


def test_little_is_no_ground_for_advice() -> None:
    assert advise([], SPEC) is None
    assert advise([started(300)], SPEC) is None
    for training, validation in BAD.values():
        assert kinds(run(training, validation, steps=18, every=1)) == []
    few = [
        event for event in run(lambda s: 2.0, steps=300) if not isinstance(event, Progress) or event.step < 15
    ]
    assert advise([event for event in few if not isinstance(event, Finished)], SPEC) is None


def test_every_kind_has_its_curves_here_and_its_row_in_the_docs() -> None:
    assert set(RULES) == {*BAD, "clipped", "nothing_trained"}
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    section = page.partition("\n## Advice\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(RULES)
