"""Each row gets its own adapter's delta, bit for bit the same whatever stands beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters.batch.cuda.lora import expand, shrink
from adapters.batch.cuda.tiles import Tiles
from adapters.delta import AdapterWeights, ModuleDelta
from tests.adapters.batch.cuda.stand import GROUPS, SHAPES, WIDTHS, Stand, weights
from tests.gpu import INTERPRETED

SLOTS = [0, 0, -1, 3, 1, 1, 1, -1, -1, 2, *[3] * 18, 0]
# By how much a result may differ from the exact one, relative to itself and to the delta's size of about 1.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


# By rows in full precision, and by tiles in the type whose tiles the interpreter is quickest with.
FORMS = [(torch.float32, None), (torch.float16, 16)]
Form = tuple[Stand, int | None]


@pytest.fixture(scope="module")
def stand(gpu: torch.device) -> Stand:
    return Stand(torch.float32, gpu)


@pytest.fixture(params=FORMS, ids=["rows", "tiles"])
def form(gpu: torch.device, request: pytest.FixtureRequest) -> Form:
    dtype, tile = request.param
    return Stand(dtype, gpu), tile


def _check(stand: Stand, group: int, slots: list[int], tile: int | None) -> None:
    x = stand.random(len(slots), SHAPES[group].in_features)
    y = stand.random(len(slots), sum(SHAPES[group].out_features), seed=1)
    got = stand.apply(x, y, group, stand.rows(slots, tile, unused=2))
    expected = stand.expected(x, y, group, slots)
    tolerance = TOLERANCE[stand.dtype]
    torch.testing.assert_close(got.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    # Nothing on the way was rounded to the narrow type, so nearly all are the exact result's rounding.
    # (Triton's interpreter cuts bfloat16 off instead.)
    if stand.dtype == torch.float16:
        assert (got.cpu() == expected.to(stand.dtype)).float().mean() > 0.98
    base = torch.tensor(slots) < 0
    assert torch.equal(got.cpu()[base], y.cpu()[base])


@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_mixed_rows(form: Form, group: int) -> None:
    stand, tile = form
    _check(stand, group, SLOTS, tile)


def test_tiles_in_full_precision(stand: Stand) -> None:
    _check(stand, 0, [*[1] * 20, -1, 0], 16)


def test_large_tiles(gpu: torch.device) -> None:
    _check(Stand(torch.float16, gpu), 0, [*[3] * 36, -1, 2, 2], 64)


@pytest.mark.parametrize(
    ("dtype", "tile"),
    [
        (torch.float16, None),
        (torch.bfloat16, None),
        pytest.param(
            torch.bfloat16,
            16,
            marks=pytest.mark.skipif(INTERPRETED, reason="its products of bfloat16 are garbage"),
        ),
    ],
)
def test_narrow_types(gpu: torch.device, dtype: torch.dtype, tile: int | None) -> None:
    for group in range(len(GROUPS)):
        _check(Stand(dtype, gpu), group, [2, 2, -1, 0, 1], tile)


@pytest.mark.parametrize("slots", [[0], [-1], [3], [2, -1]])
def test_few_rows(form: Form, slots: list[int]) -> None:
    stand, tile = form
    _check(stand, 0, slots, tile)


def test_a_row_does_not_depend_on_its_neighbours(form: Form) -> None:
    stand, tile = form
    x, y = stand.random(len(SLOTS), 1100), stand.random(len(SLOTS), 48, seed=1)
    together = stand.apply(x, y, 1, stand.rows(SLOTS, tile))
    for row in (1, 5, 9, 14, 28):
        one = slice(row, row + 1)
        alone = stand.apply(x[one], y[one], 1, stand.rows(SLOTS[one], tile))
        assert torch.equal(alone, together[one]), row


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("tile", [None, 16])
def test_an_overflow_stays_in_its_rows(gpu: torch.device, tile: int | None) -> None:
    stand = Stand(torch.float16, gpu)
    huge = stand.add(
        AdapterWeights(
            "huge",
            {
                name: ModuleDelta(
                    torch.full((16, WIDTHS[name][0]), 6e4), torch.full((WIDTHS[name][1], 16), 6e4), 1.0
                )
                for name in ("q", "k", "v")
            },
        )
    )
    slots = [0, huge, huge, -1, 2]
    x, y = stand.random(5, 300), stand.random(5, 336, seed=1)
    x[2] = torch.nan
    got = stand.apply(x, y, 0, stand.rows(slots, tile))
    without = stand.apply(x, y, 0, stand.rows([0, -1, -1, -1, 2], tile))
    assert got[1].isinf().all()
    assert got[2].isnan().all()
    for row in (0, 3, 4):
        assert torch.equal(got[row], without[row])
        assert got[row].isfinite().all()


def test_modules_one_by_one_are_as_modules_side_by_side(form: Form) -> None:
    stand, tile = form
    slots = [2, 1, 1, -1, 0]
    x, y = stand.random(5, 300), stand.random(5, 336, seed=1)
    rows, group = stand.rows(slots, tile), stand.table.groups[0]
    together = stand.apply(x, y, 0, rows)
    shrunk = shrink(x, group, rows)
    for first, stop in ((0, 1), (1, 2), (2, 3), (1, 3)):
        columns = slice(group.offsets[first], group.offsets[stop])
        part = y[:, columns].clone()
        expand(part, shrunk, group, rows, first, stop)
        assert torch.equal(part, together[:, columns])


def test_rows_may_lie_apart(form: Form) -> None:
    stand, tile = form
    slots = [2, 1, -1]
    x, y = stand.random(3, 600)[:, 300:], stand.random(3, 400, seed=1)
    rows, group = stand.rows(slots, tile), stand.table.groups[0]
    wide = y.clone()
    expand(wide[:, 32:368], shrink(x, group, rows), group, rows)
    expected = stand.expected(x, y[:, 32:368], 0, slots)
    tolerance = TOLERANCE[stand.dtype]
    got = wide[:, 32:368].cpu().double()
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(wide[:, :32], y[:, :32])
    assert torch.equal(wide[:, 368:], y[:, 368:])


def _term(name: str, seed: int = 0) -> torch.Tensor:
    return torch.randn(WIDTHS[name][1], generator=torch.Generator().manual_seed(seed))


def test_magnitudes_and_shifts(form: Form) -> None:
    """With a rank or without, beside adapters that have none."""
    stand, tile = form
    ranks = weights("dora", {"q": 8, "k": 8, "v": 0, "down": 0}).deltas
    dora = stand.add(
        AdapterWeights(
            "dora",
            {
                "q": replace(ranks["q"], magnitude=_term("q"), shift=_term("q", 1)),
                "k": replace(ranks["k"], magnitude=_term("k")),
                "down": replace(ranks["down"], magnitude=_term("down")),
            },
        )
    )
    biased = stand.add(AdapterWeights("biased", {"v": replace(ranks["v"], shift=_term("v"))}))
    for group in range(len(GROUPS)):
        _check(stand, group, [0, dora, dora, -1, biased], tile)


def test_slots_change_hands_under_the_same_launch(form: Form) -> None:
    stand, tile = form
    _check(stand, 0, [1, 2], tile)
    stand.table.free(stand.adapters[1])
    x, y = stand.random(2, 300), stand.random(2, 336, seed=1)
    freed = stand.apply(x, y, 0, stand.rows([1, 1], tile))
    assert torch.equal(freed, y)
    assert stand.add(weights("next", {"k": 32, "v": 8})) == 1
    _check(stand, 0, [1, 2], tile)


def test_tiles_are_refilled_in_place(gpu: torch.device) -> None:
    stand = Stand(torch.float16, gpu)
    tiles = Tiles(3, 16, stand.device)
    x, y = stand.random(40, 300), stand.random(40, 336, seed=1)
    for runs, slots in (
        ([(0, 40, 2)], [2] * 40),
        ([(1, 2, 0), (2, 4, -1), (5, 7, 3)], [-1, 0, -1, -1, -1, 3, 3, *[-1] * 33]),
        ([(0, 40, -1)], [-1] * 40),
    ):
        tiles.fill(runs)
        got = stand.apply(x, y, 0, tiles)
        expected = stand.expected(x, y, 0, slots)
        torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-3, atol=1e-3)


def test_nothing_is_launched_without_rows_or_tiles(stand: Stand) -> None:
    x, y = stand.random(2, 300), stand.random(2, 336)
    assert torch.equal(stand.apply(x, y, 0, Tiles.of([(0, 2, -1)], 16, stand.device)), y)
    assert stand.apply(x[:0], y[:0], 0, stand.rows([], None)).shape == (0, 336)


def test_what_does_not_fit_is_refused(stand: Stand) -> None:
    group, rows = stand.table.groups[0], stand.rows([0, 1], None)
    x, y = stand.random(2, 300), stand.random(2, 336)
    shrunk = shrink(x, group, rows)
    for wrong in (x.double(), x[:1], x[:, :299], x.t().contiguous().t()):
        with pytest.raises(ValueError, match=r"expected|contiguous|slots"):
            shrink(wrong, group, rows)
    with pytest.raises(ValueError, match="slots"):
        shrink(x, group, torch.zeros(2, dtype=torch.int64, device=stand.device))
    with pytest.raises(ValueError, match="features"):
        expand(y, shrunk, group, rows, 0, 1)
    with pytest.raises(ValueError, match="partial sums"):
        expand(y, shrunk[:, :1], group, rows)
