"""Blocks are never lost or shared by accident, and the prefix index only tells of full blocks."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.kv import BlockPool, adapted_hash, block_hash, root_hash
from server.engine.shares import PROTECTED_SECONDS, Owner

OWNER = ("", None)


def _chain(*blocks: list[int], root: bytes = b"root") -> list[bytes]:
    hashes = []
    for tokens in blocks:
        root = block_hash(root, tokens)
        hashes.append(root)
    return hashes


def test_a_root_tells_scope_base_and_adapter_apart() -> None:
    triples: list[tuple[str, str, str | None]] = [
        ("a", "b", "c"),
        ("ab", "", "c"),
        ("a", "bc", None),
        ("", "abc", None),
        ("", "ab", "c"),
    ]
    triples += [(scope, base, adapter) for scope, base, adapter in permutations("abc")][1:]
    roots = [root_hash(scope, base, adapter) for scope, base, adapter in triples]
    assert len(set(roots)) == len(triples)
    assert root_hash("a", "b", None) == root_hash("a", "b", None)


def test_a_block_hash_depends_on_all_that_came_before() -> None:
    assert block_hash(b"x", [1, 2]) == block_hash(b"x", [1, 2])
    others = [block_hash(b"y", [1, 2]), block_hash(b"x", [2, 1]), block_hash(b"x", [1, 2, 3])]
    assert block_hash(b"x", [1, 2]) not in others


def test_an_adapters_chain_depends_on_where_it_begins() -> None:
    hashes = [
        adapted_hash(parent, digest, start) for parent in (b"x", b"y") for digest in "ab" for start in (1, 2)
    ]
    assert len({*hashes, b"x", b"y"}) == 10
    assert adapted_hash(b"x", "a", 1) == hashes[0]


def test_allocates_all_or_nothing() -> None:
    pool = BlockPool(3, 4)
    assert pool.allocate(4) is None
    assert pool.free == 3
    held = pool.allocate(2)
    assert held is not None
    assert len(set(held)) == 2
    assert (pool.used, pool.free) == (2, 1)
    assert pool.allocate(2) is None
    pool.check([held])


def test_a_released_block_stays_findable_until_its_room_is_needed() -> None:
    pool = BlockPool(2, 2)
    hashes = _chain([1, 2])
    (block,) = pool.allocate(1) or []
    pool.publish(block, hashes[0], OWNER)
    pool.release([block])
    assert pool.used == 0
    assert pool.match(hashes) == [block]
    assert pool.used == 1
    pool.release([block])
    both = pool.allocate(2)
    assert not pool.cached(hashes[0])
    assert pool.match(hashes) == []
    pool.check([both or []])


def test_uncached_blocks_are_taken_before_cached_ones_and_the_oldest_prefix_ends_first() -> None:
    pool = BlockPool(4, 2)
    hashes = _chain([1, 1], [2, 2], [3, 3])
    blocks = pool.allocate(4) or []
    for block, known in zip(blocks, hashes, strict=False):
        pool.publish(block, known, OWNER)
    pool.release(blocks)
    taken = [(pool.allocate(1) or [])[0] for _ in range(4)]
    assert taken == [blocks[3], blocks[2], blocks[1], blocks[0]]


def test_a_match_is_the_longest_prefix_and_is_shared() -> None:
    pool = BlockPool(4, 2)
    hashes = _chain([1, 1], [2, 2], [3, 3])
    blocks = pool.allocate(2) or []
    for block, known in zip(blocks, hashes, strict=False):
        pool.publish(block, known, OWNER)
    shared = pool.match(hashes)
    assert shared == blocks
    pool.check([blocks, shared])
    pool.release(blocks)
    assert pool.used == 2
    pool.check([shared])


def test_a_match_ends_at_the_first_gap() -> None:
    pool = BlockPool(3, 2)
    hashes = _chain([1, 1], [2, 2], [3, 3])
    blocks = pool.allocate(3) or []
    pool.publish(blocks[0], hashes[0], OWNER)
    pool.publish(blocks[2], hashes[2], OWNER)
    assert pool.match(hashes) == blocks[:1]


def test_the_first_block_with_a_content_keeps_its_place() -> None:
    pool = BlockPool(2, 2)
    known = _chain([1, 1])[0]
    first, second = pool.allocate(2) or []
    pool.publish(first, known, OWNER)
    pool.publish(second, known, OWNER)
    assert pool.match([known]) == [first]
    pool.check([[first, second], [first]])


def _lose(pool: BlockPool, held: list[int]) -> list[list[int]]:
    return [held[:-1]]


def _share(pool: BlockPool, held: list[int]) -> list[list[int]]:
    return [held, held]


def _leak(pool: BlockPool, held: list[int]) -> list[list[int]]:
    pool._blank.pop()
    return [held]


def _stale(pool: BlockPool, held: list[int]) -> list[list[int]]:
    pool._block_of[b"known"] = held[0]
    return [held]


def _twice(pool: BlockPool, held: list[int]) -> list[list[int]]:
    pool._blank.append(pool._blank[0])
    return [held]


def _uncached(pool: BlockPool, held: list[int]) -> list[list[int]]:
    pool.publish(held[0], b"known", OWNER)
    pool.release(held)
    pool._cached.take(held[0])
    return []


@pytest.mark.parametrize("fault", [_lose, _share, _leak, _stale, _twice, _uncached])
def test_check_sees_each_kind_of_loss(fault: object) -> None:
    pool = BlockPool(4, 2)
    held = pool.allocate(2) or []
    pool.check([held])
    assert callable(fault)
    with pytest.raises(AssertionError):
        pool.check(fault(pool, held))


def _use(pool: BlockPool, owner: Owner, tokens: list[int]) -> int:
    """Compute a prompt with blocks of one token, and let it go; returns how much of it was cached."""
    hashes = _chain(*([token] for token in tokens), root=root_hash(owner[0], "base", owner[1]))
    blocks = pool.match(hashes)
    found = len(blocks)
    blocks += pool.allocate(len(tokens) - found) or []
    for block, known in zip(blocks, hashes, strict=True):
        pool.publish(block, known, owner)
    pool.release(blocks)
    pool.check([])
    return found


FLOODS: list[list[Owner]] = [
    [("mallory", None)],
    [("mallory", str(number)) for number in range(50)],  # as many adapters as she likes
    [("alice", "other")],  # another adapter of the same tenant
]


@pytest.mark.parametrize("flooders", FLOODS)
def test_a_flood_of_prompts_leaves_others_their_cached_prefix(flooders: list[Owner]) -> None:
    pool = BlockPool(2 * 30 + 16, 1)  # half of what nobody holds, while the flood holds 16
    mine = ("alice", "bot")
    _use(pool, mine, list(range(30)))
    for number in range(200):
        _use(pool, flooders[number % len(flooders)], [1000 + number] * 16)
    assert _use(pool, mine, list(range(30))) == 30


def test_whoever_has_more_than_a_share_loses_the_rest() -> None:
    pool = BlockPool(40, 1)
    _use(pool, ("greedy", None), list(range(40)))
    for number in range(3):
        _use(pool, (f"late{number}", None), list(range(10)))
    assert [_use(pool, (f"late{number}", None), list(range(10))) for number in range(3)] == [10] * 3
    assert _use(pool, ("greedy", None), list(range(10))) == 10  # its beginning is what is left


def test_a_share_that_lay_unused_for_long_goes_first() -> None:
    now = [0.0]
    pool = BlockPool(40, 1, lambda: now[0])
    _use(pool, ("gone", None), list(range(10)))
    _use(pool, ("there", None), list(range(30)))
    now[0] = PROTECTED_SECONDS + 1
    assert _use(pool, ("there", None), list(range(30))) == 30
    _use(pool, ("new", None), list(range(10)))
    assert _use(pool, ("there", None), list(range(30))) == 30
    assert _use(pool, ("new", None), list(range(10))) == 10


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["start", "grow", "stop"]), st.integers(0, 5), st.integers(0, 2)), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_no_sequence_of_actions_loses_a_block_or_serves_foreign_content(
    actions: list[tuple[str, int, int]],
) -> None:
    """`written` models the memory: what a matched block holds must be what its hash stands for."""
    pool = BlockPool(6, 1)
    written: dict[int, bytes] = {}
    live: list[tuple[list[int], list[bytes], Owner]] = []
    for kind, index, token in actions:
        if kind == "start":
            hashes = _chain(*([token] for _ in range(index)))
            blocks = pool.match(hashes)
            assert [written[block] for block in blocks] == hashes[: len(blocks)]
            live.append((blocks, hashes[: len(blocks)], (str(token % 2), str(index))))
        elif live and kind == "grow":
            blocks, hashes, owner = live[index % len(live)]
            new = pool.allocate(1)
            if new is not None:
                hashes.append(block_hash(hashes[-1] if hashes else b"root", [token]))
                written[new[0]] = hashes[-1]
                blocks += new
                pool.publish(new[0], hashes[-1], owner)
        elif live:
            pool.release(live.pop(index % len(live))[0])
        pool.check([blocks for blocks, *_ in live])
    for blocks, hashes, _ in live:
        assert [written[block] for block in blocks] == hashes


def test_scope_base_and_adapter_each_root_their_own_chain() -> None:
    roots = {
        root_hash(*parts) for parts in (("", "b", None), ("s", "b", None), ("", "c", None), ("", "b", "a"))
    }
    assert len(roots) == 4
    assert root_hash("ab", "c", "d") != root_hash("a", "bc", "d")
