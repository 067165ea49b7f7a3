"""What the figures of a file advise. None of it is a rule that stops a run."""

from __future__ import annotations

from collections.abc import Iterator

from training.data.statistics import Statistics

BANDS = ((10, 3_000, 5_000), (32, 5_000, 10_000), (64, 10_000, 20_000))
"""The seed texts: billions of parameters of the base, and rows from and to."""
FEWEST = 10
"""Rows below which OpenAI takes no file."""
_TARGET_EPOCHS, _MOST_EPOCHS = 3, 25
_FEWEST_SEEN, _MOST_SEEN = 100, 25_000
_LOPSIDED = 10


def auto_epochs(rows: int) -> int:
    """OpenAI's rule: 3 epochs, more where that is under 100 rows, fewer where it is over 25,000."""
    if rows * _TARGET_EPOCHS < _FEWEST_SEEN:
        return min(_MOST_EPOCHS, _FEWEST_SEEN // max(1, rows))
    if rows * _TARGET_EPOCHS > _MOST_SEEN:
        return max(1, _MOST_SEEN // rows)
    return _TARGET_EPOCHS


def advise(found: Statistics, longest: int, max_length: int | None, validated: bool) -> Iterator[str]:
    """A line for each thing worth knowing.

    Args:
        longest: tokens of the longest row before it is cut; 0: not known.
        validated: a validation file was given.
    """
    rows = found.examples
    if not rows:
        return
    bands = ", ".join(f"{low:,} to {high:,} for {billions} billion" for billions, low, high in BANDS)
    yield (
        f"{rows:,} row{'s' * (rows != 1)}. The seed texts advise, by the base's parameters: {bands}. A "
        "narrow task on a small base learns from a few hundred."
    )
    epochs = auto_epochs(rows)
    yield f"OpenAI's rule takes {epochs} epoch{'s' * (epochs != 1)} for them: {rows * epochs:,} rows seen."
    if rows < FEWEST:
        yield f"OpenAI refuses files under {FEWEST} rows: an adapter learns them by heart, and little else."
    if max_length is not None and found.truncated:
        yield f"max_length={longest} would keep every row whole."
    elif max_length is not None and 0 < longest <= max_length // 2:
        yield f"The longest row has {longest} tokens: max_length={max(2, longest)} is enough."
    if len(found.labels) > 1 and max(found.labels.values()) >= _LOPSIDED * min(found.labels.values()):
        most, least = (pick(found.labels, key=lambda name: found.labels[name]) for pick in (max, min))
        yield (
            f"{most!r} is there {found.labels[most]:,} times, {least!r} {found.labels[least]:,} times: "
            "accuracy alone would hide how the rare one does."
        )
    if not validated:
        yield "No validation file: keep a tenth of the rows apart for one, or overfitting is not seen."
