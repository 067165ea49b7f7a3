"""Counts and evictions against a plain model that looks at everything each time."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.engine.shares import PROTECTED_SECONDS, CachedBlocks, Largest, Owner

OWNERS: list[Owner] = [("a", None), ("a", "x"), ("a", "y"), ("b", "x"), ("c", None)]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcd")), max_size=80))
def test_the_largest_count_is_known_at_any_time(changes: list[tuple[bool, str]]) -> None:
    largest: Largest[str] = Largest()
    model: Counter[str] = Counter()
    for up, key in changes:
        if up:
            largest.increment(key)
            model[key] += 1
        elif model[key]:
            largest.decrement(key)
            model[key] -= 1
        assert largest.counts == +model
        if +model:
            assert model[largest.largest()] == max(model.values())


def test_of_several_the_one_that_has_it_longest_is_first() -> None:
    largest: Largest[str] = Largest()
    for key in "abba":
        largest.increment(key)
    assert largest.largest() == "b"


CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "add", "take", "evict", "wait"]), st.integers(0, 4)), max_size=100
)


@given(CHANGES)
def test_evicts_from_the_largest_share_the_least_recently_used(changes: list[tuple[str, int]]) -> None:
    now = 0.0
    cached = CachedBlocks(lambda: now)
    model: dict[int, Owner] = {}  # in the order of their last use
    used: dict[Owner, float] = {}
    block = 0
    for kind, number in changes:
        now += PROTECTED_SECONDS if kind == "wait" else 1.0
        owner = OWNERS[number]
        mine = [known for known, whose in model.items() if whose == owner]
        if kind == "add":
            block += 1
            cached.add(block, owner)
            model[block] = owner
            used[owner] = now
        elif kind == "take" and mine:
            cached.take(mine[-1])
            del model[mine[-1]]
            used[owner] = now
        elif kind == "evict" and model:
            shares = Counter(model.values())
            scopes = Counter(scope for scope, _ in model.values())
            lapsed = {whose for whose in shares if now - used[whose] > PROTECTED_SECONDS}
            gone = cached.evict()
            loser = model.pop(gone)
            if lapsed:
                assert used[loser] == min(used[whose] for whose in shares)
            else:
                assert scopes[loser[0]] == max(scopes.values())
                assert shares[loser] == max(n for whose, n in shares.items() if whose[0] == loser[0])
            assert all(known > gone for known, whose in model.items() if whose == loser)
        assert cached.blocks() == model.keys()
        assert [cached.count(whose) for whose in OWNERS] == [
            sum(other == whose for other in model.values()) for whose in OWNERS
        ]
