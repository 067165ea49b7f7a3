"""Places in flight and tokens a minute, in a time of our own."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.registry.records import Quota
from server.access.budgets import Admission, Budgets, OverBudget, OverQuota


class World:
    """Budgets with a clock and quotas that a test sets."""

    def __init__(self, **quota: int | None) -> None:
        self.now = 100.0
        self.quotas = {"acme": Quota(**quota)}  # type: ignore[arg-type]
        self.budgets = Budgets(lambda tenant: self.quotas.get(tenant, Quota()), lambda: self.now)

    def admit(self, sequences: int = 1, tokens: int = 0, tenant: str = "acme") -> Admission:
        return self.budgets.admit(tenant, sequences, tokens)

    def refused(self, sequences: int = 1, tokens: int = 0) -> OverBudget:
        with pytest.raises(OverBudget) as caught:
            self.admit(sequences, tokens)
        return caught.value


def test_without_a_quota_nothing_is_refused_and_nothing_kept() -> None:
    world = World()
    admissions = [world.admit(100, 10**9) for _ in range(100)]
    assert world.budgets.in_flight("acme") == 10_000
    assert world.budgets.tokens("acme") is None
    for admission in admissions:
        admission.charge(10**9)
        admission.close()
    assert world.budgets._accounts == {}


def test_one_more_than_may_be_in_flight_is_refused_until_one_ends() -> None:
    world = World(max_in_flight=3)
    first = world.admit(2)
    world.admit(1)
    refused = world.refused()
    assert (refused.code, refused.seconds) == ("tenant_busy", 1)
    assert "3 of at most 3" in str(refused)
    first.close()
    first.close()
    assert world.budgets.in_flight("acme") == 1
    world.admit(2)
    world.refused()


def test_a_request_that_never_fits_is_told_so() -> None:
    world = World(max_in_flight=3)
    with pytest.raises(OverQuota, match=r"4 answers at once.*3 in flight"):
        world.admit(4)
    assert world.budgets.in_flight("acme") == 0
    assert world.budgets.places("acme", 4) == 3
    assert world.budgets.places("acme", 2) == 2
    assert world.budgets.places("other", 2048) == 2048


def test_tenants_do_not_share_anything() -> None:
    world = World(max_in_flight=1, tokens_per_minute=1)
    world.admit(1, 100)
    world.refused()
    for _ in range(9):
        world.admit(5, 1000, tenant="other")
    assert world.budgets.in_flight("acme") == 1


def test_what_is_refused_takes_nothing() -> None:
    world = World(max_in_flight=1, tokens_per_minute=60)
    world.admit(1, 61)
    for _ in range(5):
        world.refused(1, 1000)
    world.now += 61
    state = world.budgets.tokens("acme")
    assert state is not None
    assert state.remaining == 60


def test_a_bucket_goes_into_debt_and_says_when_it_is_paid() -> None:
    world = World(tokens_per_minute=600)  # ten a second
    admission = world.admit(tokens=500)
    admission.charge(130)  # 30 tokens of debt: 3 seconds
    refused = world.refused()
    assert (refused.code, refused.seconds) == ("tokens_per_minute", 4)
    assert "600 tokens a minute" in str(refused)
    world.now += 3
    assert world.refused().seconds == 1  # at zero, and not above it
    world.now += 1
    world.admit()


@given(st.integers(1, 10**6), st.integers(0, 10**7), st.floats(0, 120))
def test_retry_after_is_true_and_hardly_more_than_needed(limit: int, spent: int, pause: float) -> None:
    world = World(tokens_per_minute=limit)
    world.admit(tokens=spent)
    world.now += pause
    try:
        world.admit()
    except OverBudget as refused:
        before = world.now
        world.now = before + refused.seconds
        world.admit()
        world.now = before
        fresh = World(tokens_per_minute=limit)
        fresh.admit(tokens=spent)
        fresh.now += pause + refused.seconds - 1.001
        if refused.seconds > 1:
            fresh.refused()


def test_what_is_used_in_the_long_run_is_the_quota() -> None:
    """A tenant that asks as often as it may gets its tokens a minute, one bucket and one request more."""
    rng = random.Random(5)
    world = World(tokens_per_minute=1200)
    begin, used = world.now, 0
    while world.now < begin + 3600:
        try:
            tokens = rng.randrange(1, 300)
            world.admit(tokens=tokens).charge(tokens)
            used += 2 * tokens
        except OverBudget as refused:
            world.now += refused.seconds
        world.now += rng.random() * 0.01
    allowed = Fraction(1200, 60) * Fraction(world.now - begin) + 1200 + 600
    assert float(allowed) - 2500 < used <= allowed


def test_the_state_is_what_openais_headers_tell() -> None:
    world = World(tokens_per_minute=600)
    state = world.budgets.tokens("acme")
    assert state is not None
    assert (state.limit, state.remaining, state.reset) == (600, 600, 0)
    world.admit(tokens=150)
    world.now += 0.05
    state = world.budgets.tokens("acme")
    assert state is not None
    assert (state.limit, state.remaining) == (600, 450)
    assert state.reset == pytest.approx(14.95)
    world.admit(tokens=1000)
    state = world.budgets.tokens("acme")
    assert state is not None
    assert state.remaining == 0
    assert state.reset == pytest.approx(114.95)


def test_a_quota_that_changes_counts_from_then_on() -> None:
    world = World()
    admission = world.admit(tokens=10**6)
    world.quotas["acme"] = Quota(max_in_flight=1, tokens_per_minute=60)
    world.refused()
    admission.charge(70)
    admission.close()
    assert world.refused().seconds == 11
    world.quotas["acme"] = Quota(tokens_per_minute=6000)
    world.now += 1
    world.admit().close()
    world.quotas["acme"] = Quota(tokens_per_minute=1)
    state = world.budgets.tokens("acme")
    assert state is not None
    assert state.remaining <= 1
    world.quotas["acme"] = Quota()
    world.admit(tokens=10**6).close()
    world.quotas["acme"] = Quota(tokens_per_minute=60)
    state = world.budgets.tokens("acme")
    assert state is not None
    assert state.remaining == 60
