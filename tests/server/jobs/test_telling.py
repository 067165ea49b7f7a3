"""What a job's owner reads of its training."""

from __future__ import annotations

import math

from server.jobs.telling import Telling, Told
from training.events import Evaluated, Finished, Progress, Saved, Started


def progress(step: int, loss: float = 0.5) -> Progress:
    return Progress(step, loss, 0.01, 1.0, 200.0, 9.0, 10 * step, 0.75)


def begun() -> tuple[Telling, list[float]]:
    now = [100.0]
    telling = Telling(lambda: now[0])
    telling.hear(Started(0.0, 10, 50, 1000, 64, 8))
    return telling, now


def test_beginnings() -> None:
    telling = Telling()
    told = telling.hear(Started(0.0, 10, 50, 1000, 64, 8))
    assert told == Told(
        "Training begins: 10 steps on 64 rows, 8 to validate on; 50 trainable parameters (5.00%)"
    )
    told = telling.hear(Started(0.0, 10, 50, 1000, 64, 0, 4))
    assert told == Told(
        "Training goes on after step 4 of 10 steps on 64 rows; 50 trainable parameters (5.00%)"
    )


def test_steps_are_told_once_a_second_and_the_last_in_any_case() -> None:
    telling, now = begun()
    assert telling.hear(progress(1)) is not None
    now[0] += 0.5
    assert telling.hear(progress(2)) is None
    assert (telling.trained_tokens, telling.seconds_left) == (20, 9.0)
    now[0] += 0.6
    told = telling.hear(progress(3))
    assert told is not None
    assert (told.message, told.is_metrics) == ("Step 3/10: training loss=0.5000", True)
    assert told.data is not None
    assert told.data["train_mean_token_accuracy"] == 0.75
    assert telling.hear(progress(10)) is not None


def test_metrics_are_those_of_the_step() -> None:
    telling, _ = begun()
    telling.hear(progress(4))
    telling.hear(Evaluated(4, 0.25, 0.5, "exact_match", 0.75, (), {"f1": 0.5}))
    found = telling.metrics(4)
    assert (found["train_loss"], found["full_valid_loss"], found["valid_loss"]) == (0.5, 0.25, 0.25)
    assert (found["exact_match"], found["f1"]) == (0.75, 0.5)
    telling.hear(progress(5, 0.125))
    assert telling.metrics(5) == {"step": 5, "train_loss": 0.125, "train_mean_token_accuracy": 0.75}


def test_what_is_no_number_is_left_out() -> None:
    telling, _ = begun()
    told = telling.hear(Evaluated(4, math.nan, None, "exact_match", None))
    assert told is not None
    assert told.data == {"step": 4}
    assert telling.metrics(4) == {"step": 4}


def test_ends_and_checkpoints() -> None:
    telling, _ = begun()
    assert telling.hear(Finished(10, "done", 1.0, 0.1, 100)) is None
    assert telling.hear(Saved(10, "folder")) is None
    told = telling.hear(Finished(6, "early_stopped", 1.0, 0.1, 100))
    assert told is not None
    assert "at step 6" in told.message
