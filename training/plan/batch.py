"""Effective batch = rows of one pass x passes of one step x devices: any one of the four from the others."""

from __future__ import annotations

from dataclasses import dataclass

from training.spec import require


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimizer step sees.

    Attributes:
        rows: of one forward pass on one device.
        accumulation: forward passes of one step.
    """

    rows: int
    accumulation: int
    devices: int

    @property
    def effective(self) -> int:
        return self.rows * self.accumulation * self.devices


def solve_batch(
    rows: int | None = None,
    accumulation: int | None = None,
    effective: int | None = None,
    devices: int | None = None,
    *,
    usual: int = 16,
    most_rows: int | None = None,
) -> Batch:
    """The batch of which some numbers are given.

    Args:
        usual: the effective batch where nothing decides it.
        most_rows: of one pass, where `rows` is free.

    Raises:
        ValueError: the numbers contradict one another, or leave no whole number for the missing one.
    """
    for name, value in (
        ("batch size", rows),
        ("accumulation", accumulation),
        ("effective batch", effective),
        ("devices", devices),
    ):
        require(value is None or value >= 1, f"the {name} must be at least 1, not {value}")
    if rows and accumulation and effective and not devices:
        devices = _divided(effective, {"rows": rows, "passes": accumulation})
    devices = devices or 1
    if effective is None:
        if rows and not accumulation:
            accumulation = max(1, usual // (rows * devices))
        elif accumulation and not rows:
            rows = max(1, usual // (accumulation * devices))
            rows = min(rows, most_rows or rows)
        elif not rows:
            effective = max(devices, usual // devices * devices)
    if effective is not None:
        rows, accumulation = _split(effective, rows, accumulation, devices, most_rows)
    assert rows is not None
    assert accumulation is not None
    return Batch(rows, accumulation, devices)


def _split(
    effective: int, rows: int | None, accumulation: int | None, devices: int, most_rows: int | None
) -> tuple[int, int]:
    if rows and accumulation:
        made = rows * accumulation * devices
        require(
            made == effective,
            f"batch size {rows} x accumulation {accumulation} x {devices} devices is {made}, "
            f"not the effective batch {effective}: leave one out",
        )
        return rows, accumulation
    if rows:
        return rows, _divided(effective, {"rows": rows, "devices": devices})
    if accumulation:
        return _divided(effective, {"passes": accumulation, "devices": devices}), accumulation
    share = _divided(effective, {"devices": devices})
    fitting = max(
        number for number in range(1, share + 1) if share % number == 0 and number <= (most_rows or share)
    )
    return fitting, share // fitting


def _divided(effective: int, by: dict[str, int]) -> int:
    """The missing factor of the effective batch."""
    product = 1
    for factor in by.values():
        product *= factor
    whole, left = divmod(effective, product)
    given = " x ".join(f"{factor} {name}" for name, factor in by.items())
    near = " or ".join(str(product * number) for number in (whole, whole + 1) if number)
    require(
        left == 0,
        f"an effective batch of {effective} can't be made of {given}: "
        f"{effective} / {product} is no whole number; {near} would do",
    )
    return whole
