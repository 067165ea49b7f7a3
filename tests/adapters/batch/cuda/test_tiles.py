"""Tiles cover the rows of adapters, each row once, and no row of the bare base."""

from __future__ import annotations

import pytest
import torch

from adapters.batch.cuda.tiles import Run, Tiles, tiles_needed

CPU = torch.device("cpu")


def test_runs_are_cut_and_the_rest_is_empty() -> None:
    tiles = Tiles(6, 16, CPU)
    tiles.fill([(0, 3, -1), (3, 36, 2), (36, 37, 0), (40, 40, 1)])
    assert tiles.table.tolist() == [[3, 19, 2], [19, 35, 2], [35, 36, 2], [36, 37, 0], [0, 0, -1], [0, 0, -1]]
    address = tiles.table.data_ptr()
    tiles.fill([])
    assert tiles.table.tolist() == [[0, 0, -1]] * 6
    assert tiles.table.data_ptr() == address


def test_a_table_of_just_the_length() -> None:
    runs = [(0, 64, 1), (64, 65, 1), (65, 70, -1)]
    assert tiles_needed(runs, 64) == 2
    assert Tiles.of(runs, 64, CPU).table.tolist() == [[0, 64, 1], [64, 65, 1]]
    assert len(Tiles.of([(0, 9, -1)], 64, CPU).table) == 0


def test_runs_that_overlap_or_do_not_fit_are_refused() -> None:
    tiles = Tiles(2, 16, CPU)
    overlapping: list[list[Run]] = [[(0, 3, 1), (2, 4, 0)], [(3, 2, 1)], [(4, 5, 1), (0, 1, 1)]]
    for runs in overlapping:
        with pytest.raises(ValueError, match="follow row"):
            tiles.fill(runs)
    with pytest.raises(ValueError, match="3 tiles do not fit"):
        tiles.fill([(0, 33, 1)])


@pytest.mark.parametrize("rows", [8, 24])
def test_sizes_that_tensor_cores_do_not_take_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Tiles(1, rows, CPU)
