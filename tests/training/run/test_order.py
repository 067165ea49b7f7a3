"""The order of the rows: every row once an epoch, a pure function of seed and step."""

from __future__ import annotations

from itertools import islice

import pytest

from training.run.order import EpochBatches, Order


@pytest.mark.parametrize(("rows", "batch", "accumulation"), [(10, 2, 2), (7, 3, 1), (5, 8, 1), (12, 4, 3)])
def test_each_epoch_has_every_row_once(rows: int, batch: int, accumulation: int) -> None:
    order = Order(rows, batch, 3, accumulation)
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = [row for step in steps for one in order.step(step) for row in one]
        assert sorted(seen) == list(range(rows))
        assert all(len(one) <= batch for step in steps for one in order.step(step))
        assert [one for step in steps for one in order.step(step)] == order.epoch(epoch)


def test_epochs_and_seeds_differ() -> None:
    order, other = Order(50, 5, 0), Order(50, 5, 1)
    assert order.epoch(0) != order.epoch(1)
    assert order.epoch(0) != other.epoch(0)


def test_any_step_can_be_asked_first() -> None:
    forward = [Order(10, 2, 0, 2).step(step) for step in range(9)]
    backward = [Order(10, 2, 0, 2).step(step) for step in reversed(range(9))]
    assert forward == backward[::-1]


def test_what_a_step_sees_depends_on_the_effective_batch_alone() -> None:
    whole, parts = Order(20, 8, 0), Order(20, 2, 0, 4)
    for step in range(6):
        assert whole.step(step)[0] == tuple(row for one in parts.step(step) for row in one)


def test_it_stays_the_same_in_later_versions() -> None:
    """A run that goes on after an update must see the same rows."""
    assert Order(8, 3, 0).epoch(0) == [(6, 1, 3), (2, 7, 0), (5, 4)]


def test_a_loader_gets_the_epoch_that_its_step_lies_in() -> None:
    order = Order(10, 2, 0, 2)
    batches = EpochBatches(order, lambda: 4)  # three steps are an epoch
    assert len(batches) == 5
    assert [tuple(rows) for rows in batches] == order.epoch(1)
    assert list(islice(batches, 1)) == [list(order.step(3)[0])]
