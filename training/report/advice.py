"""What the curves of a run say about its settings.

Each rule looks at all that was told so far and says its sentence, or nothing. All thresholds are constants
here and stand in docs/training.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median

from training.events import Advised, Event
from training.report.curves import Curves
from training.report.robust import bent, fall, noise, spread
from training.spec import TrainSpec

FEW_STEPS = 20
"""Below that nothing is said of a curve's shape."""
NOTHING_STEPS, NOTHING_LOSS = 5, 1e-6
LEARNED = 0.05
"""Losses (nats) below it are learned: shapes down there mean nothing."""
SPIKE_DEVIATIONS, SPIKE_FACTOR, SPIKE_SHARE, SPIKES, SPIKE_WINDOW = 6.0, 1.5, 0.25, 3, 10
FLAT_SHARE, FLAT_FALL, FLAT_DOUBT, FLAT_LOWEST = 1 / 3, 0.02, 0.08, 0.8
CLIPPED_STEPS, CLIPPED_SHARE, CLIPPED_FACTOR = 50, 0.95, 2.0
LEAK_LOOKS, LEAK_SHARE, LEAK_WINDOW = 3, 0.7, 5
OVERFIT_LOOKS, OVERFIT_RISE, OVERFIT_NATS, OVERFIT_DEVIATIONS, OVERFIT_FALL = 3, 0.02, 0.01, 3.0, 0.02
UNDERFIT_SHARE, UNDERFIT_FALL, UNDERFIT_DEVIATIONS, UNDERFIT_LOOK = 0.3, 0.1, 3.0, 0.05
GOOD_SCORE = 0.95

Rule = Callable[[Curves, TrainSpec], str | None]


def advise(events: Iterable[Event], spec: TrainSpec) -> Advised | None:
    """The first piece of advice that these events give and that is not among them; None if there is none.

    Costs a look at all steps: to be asked at evaluations and at the end, not at each step.
    """
    told = list(events)
    curves = Curves(told)
    said = {event.kind for event in told if isinstance(event, Advised)}
    if not curves.progress:
        return None
    for kind, rule in RULES.items():
        if kind not in said and (message := rule(curves, spec)) is not None:
            return Advised(curves.progress[-1].step, kind, message)
    return None


def nothing_trained(curves: Curves, spec: TrainSpec) -> str | None:
    """The first steps have no loss, or no gradient."""
    first = curves.progress[:NOTHING_STEPS]
    if len(first) < NOTHING_STEPS:
        return None
    if all(each.loss < NOTHING_LOSS for each in first):
        return (
            f"the loss is 0 from the first step: no token of the rows is learned. See with `multilora train "
            f"preview` what it counts; rows longer than max_length {spec.max_length} may lose their answer"
        )
    if all(each.gradient_norm == 0 for each in first):
        return (
            f"the gradient is 0 in the first {NOTHING_STEPS} steps: nothing is trained. See that "
            f"target_modules and layers name modules that the loss depends on"
        )
    return None


def spikes(curves: Curves, spec: TrainSpec) -> str | None:
    """The loss jumps far above its own noise, again and again, or stays far above where it was."""
    losses = [max(each.loss, 1e-12) for each in curves.progress]
    if len(losses) < FEW_STEPS:
        return None
    start = median(losses[: SPIKE_WINDOW // 2])
    lower = f"a lower learning_rate ({spec.learning_rate / 2:g}) or alpha ({spec.lora.alpha / 2:g})"
    found = _jumps(losses, start)
    if len(found) >= SPIKES:
        at = ", ".join(str(curves.progress[place].step) for place in found[:5])
        return f"the loss jumped {len(found)} times (steps {at}): training is not stable. Take {lower}"
    low = _lowest(losses)
    now = median(losses[-SPIKE_WINDOW:])
    doubt = noise([math.log(loss) for loss in losses]) / math.sqrt(SPIKE_WINDOW / 2)
    least = max(SPIKE_DEVIATIONS * doubt, math.log(SPIKE_FACTOR))
    if math.log(now / low) > least and now - low > SPIKE_SHARE * start:
        return f"the loss went up from {low:.3g} to {now:.3g} and stays there: it is not stable. Take {lower}"
    return None


def _lowest(losses: Sequence[float]) -> float:
    """The lowest that the loss was for a while."""
    starts = range(0, len(losses) - SPIKE_WINDOW + 1, SPIKE_WINDOW)
    return min(median(losses[at : at + SPIKE_WINDOW]) for at in starts)


def _jumps(losses: Sequence[float], start: float) -> list[int]:
    """Places far above the median of the values before them. In logarithms, where noise has no sides."""
    before = [median(losses[max(0, place - SPIKE_WINDOW) : place]) for place in range(1, len(losses))]
    rises = [math.log(loss / level) for loss, level in zip(losses[1:], before, strict=True)]
    least = max(SPIKE_DEVIATIONS * spread(rises), math.log(SPIKE_FACTOR))
    return [
        place
        for place, (rise, level) in enumerate(zip(rises, before, strict=True), start=1)
        if rise > least and losses[place] - level > SPIKE_SHARE * start
    ]


def flat(curves: Curves, spec: TrainSpec) -> str | None:
    """No progress over the first third, or over more of the run where a third is too noisy to say."""
    losses = [each.loss for each in curves.progress]
    total = curves.started.steps if curves.started is not None else len(losses)
    if len(losses) < max(FEW_STEPS, total * FLAT_SHARE):
        return None
    looks = [each.loss for each in curves.evaluated]
    if len(looks) >= 2 and looks[-1] < (1 - FLAT_FALL) * looks[0]:
        return None
    first, last = losses[: max(5, len(losses) // 20)], losses[-(len(losses) // 4) :]
    if median(last) < LEARNED or _lowest(losses) < FLAT_LOWEST * fmean(first):
        return None
    seen = fall(first, last)
    if seen.share >= FLAT_FALL or seen.doubt > FLAT_DOUBT:
        return None
    return (
        f"the loss has not fallen in {len(losses)} steps (it is {median(losses[-5:]):.3g}). "
        f"Take a higher learning_rate ({spec.learning_rate * 3:g}) or alpha ({spec.lora.alpha * 2:g})"
    )


def clipped(curves: Curves, spec: TrainSpec) -> str | None:
    """The gradient is cut down at nearly every step, and by much."""
    after = round(spec.warmup * (curves.started.steps if curves.started is not None else 0))
    norms = [each.gradient_norm for each in curves.progress if each.step > after][-CLIPPED_STEPS:]
    if len(norms) < FEW_STEPS:
        return None
    share = sum(norm > spec.max_grad_norm for norm in norms) / len(norms)
    usual = median(norms)
    if share < CLIPPED_SHARE or usual < CLIPPED_FACTOR * spec.max_grad_norm:
        return None
    return (
        f"the gradient was clipped at {share:.0%} of the last {len(norms)} steps (norm {usual:.3g}, limit "
        f"{spec.max_grad_norm:g}): each step goes the same way far. Take a lower learning_rate "
        f"({spec.learning_rate / 2:g}) or alpha ({spec.lora.alpha / 2:g}), or a max_grad_norm of {usual:.2g}"
    )


def leak(curves: Curves, spec: TrainSpec) -> str | None:
    """Validation rows are far easier than training rows from the start."""
    looks = curves.evaluated[:LEAK_LOOKS]
    if len(looks) < LEAK_LOOKS or len(curves.progress) < FEW_STEPS:
        return None
    pairs = []
    for look in looks:
        near = [e.loss for e in curves.progress if -LEAK_WINDOW < e.step - look.step <= LEAK_WINDOW]
        if curves.progress[-1].step < look.step + LEAK_WINDOW:
            return None  # with the steps before it alone, a falling loss would look too high
        pairs.append((look.loss, median(near)))
    if any(loss > LEAK_SHARE * trained or trained - loss < LEARNED for loss, trained in pairs):
        return None
    loss, trained = pairs[-1]
    return (
        f"the validation loss ({loss:.3g}) is far below the training loss ({trained:.3g}) from the start: "
        f"the validation rows are easier, or known. See with `multilora train check` whether they leak"
    )


def overfitting(curves: Curves, spec: TrainSpec) -> str | None:
    """The validation loss rises, evaluation after evaluation, while the training loss falls."""
    best, looks = curves.best, curves.evaluated
    if best is None or len(curves.progress) < FEW_STEPS:
        return None
    since = [each for each in looks if each.step > best.step]
    if len(since) < OVERFIT_LOOKS:
        return None
    last = since[-OVERFIT_LOOKS:]
    losses = [each.loss for each in last]
    doubt = OVERFIT_DEVIATIONS * bent([each.loss for each in looks])
    least = best.loss + max(OVERFIT_RISE * best.loss, OVERFIT_NATS)
    if min(losses) < least or losses[-1] < losses[0] or fmean(losses) < best.loss + doubt:
        return None
    interval = max(1, last[-1].step - last[-2].step)
    before = [each.loss for each in curves.progress if best.step - interval < each.step <= best.step]
    now = [each.loss for each in curves.progress if last[-1].step - interval < each.step <= last[-1].step]
    if not before or not now:
        return None
    trained = fall(before, now)
    if trained.share < max(OVERFIT_FALL, 2 * trained.doubt):
        return None
    more = next((each for each in (0.05, 0.1, 0.2) if each > spec.lora.dropout), 0.3)
    return (
        f"the validation loss has risen from {best.loss:.3g} (step {best.step}) to {losses[-1]:.3g} while "
        f"the training loss fell: overfitting. Take more dropout ({more:g}), fewer epochs, a lower rank "
        f"({max(1, spec.lora.rank // 2)}) or more rows; patience={OVERFIT_LOOKS} ends a run there"
    )


def underfit(curves: Curves, spec: TrainSpec) -> str | None:
    """The run is over, and the loss was still on its way down."""
    losses = [each.loss for each in curves.progress]
    over = curves.started is not None and curves.progress[-1].step >= curves.started.steps
    tail = losses[-int(len(losses) * UNDERFIT_SHARE) :]
    if not over or len(tail) < FEW_STEPS or median(tail) < LEARNED:
        return None
    looks = curves.evaluated
    if looks and (looks[-1].score or 0) >= GOOD_SCORE:
        return None
    if len(looks) >= 3 and looks[-1].loss > (1 - UNDERFIT_LOOK) * looks[-3].loss:
        return None
    half = len(tail) // 2
    seen = fall(tail[:half], tail[half:])
    if seen.share < UNDERFIT_FALL or seen.share < UNDERFIT_DEVIATIONS * seen.doubt:
        return None
    return (
        f"the loss was still falling at the end (by {seen.share:.0%} in the last {len(tail)} steps): take "
        f"more epochs ({2 * spec.epochs}) or a higher learning_rate ({spec.learning_rate * 2:g})"
    )


RULES: dict[str, Rule] = {
    "nothing_trained": nothing_trained,
    "spikes": spikes,
    "flat": flat,
    "clipped": clipped,
    "leak": leak,
    "overfitting": overfitting,
    "underfit": underfit,
}
"""By kind, the most urgent first."""
