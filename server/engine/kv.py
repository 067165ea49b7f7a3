"""Paged KV: a pool of blocks, and the prefix cache over the blocks that are full.

A full block is known by a hash chained over everything before it, rooted in (scope, serving digest of the
base, adapter digest); an adapter that acts only from a later token on comes into the chain there, after the
base's own blocks. Blocks that nobody holds stay findable until their room is needed; `shares.py` says whose
goes first.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Sequence

from server.engine.shares import CachedBlocks, Owner


def root_hash(scope: str, base_digest: str, adapter_digest: str | None) -> bytes:
    """The start of a hash chain. Fields are length-prefixed, so that no two triples can collide."""
    hasher = hashlib.blake2b(digest_size=16)
    for field in (scope, base_digest, adapter_digest or ""):
        data = field.encode()
        hasher.update(struct.pack("<Q", len(data)) + data)
    return hasher.digest()


def adapted_hash(parent: bytes, adapter_digest: str, start: int) -> bytes:
    """In place of `parent` for the first block that an adapter acts in: from the sequence's token `start` on.

    `start` is part of it: the same tokens of a block may be adapted from different places, as what comes
    after the block decides where the last invocation is.
    """
    digest = adapter_digest.encode()
    return hashlib.blake2b(parent + struct.pack("<Q", start) + digest, digest_size=16).digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of one full block after `parent`."""
    return hashlib.blake2b(parent + struct.pack(f"<{len(tokens)}I", *tokens), digest_size=16).digest()


class BlockPool:
    """Blocks `0 .. total-1`, each held by any number of sequences."""

    def __init__(self, total: int, block_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.block_size = block_size
        self._holders = [0] * total
        self._blank = list(reversed(range(total)))  # unheld and not findable; the last is taken first
        self._cached = CachedBlocks(clock)  # unheld and findable
        self._known_as: dict[int, tuple[bytes, Owner]] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._blank) + len(self._cached)

    @property
    def used(self) -> int:
        return self.total - self.free

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks to write to, or None if there are not that many."""
        if count > self.free:
            return None
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back. Its later blocks are reused first: earlier ones are likelier prefixes."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                if block in self._known_as:
                    self._cached.add(block, self._known_as[block][1])
                else:
                    self._blank.append(block)

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Take hold of the blocks of the longest cached prefix of `hashes`."""
        blocks: list[int] = []
        for known in hashes:
            block = self._block_of.get(known)
            if block is None:
                break
            if not self._holders[block]:
                self._cached.take(block)
            self._holders[block] += 1
            blocks.append(block)
        return blocks

    def held_alone(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` have one holder: those that its `release` frees."""
        return sum(self._holders[block] == 1 for block in blocks)

    def cached(self, known: bytes) -> bool:
        return known in self._block_of

    def publish(self, block: int, known: bytes, owner: Owner) -> None:
        """Make a full block findable, held as it is by a sequence of `owner`. The first of equals stays."""
        if known not in self._block_of and block not in self._known_as:
            self._block_of[known] = block
            self._known_as[block] = known, owner

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Raise `AssertionError` unless `held`, the tables of all live sequences, explains every hold."""
        counts = [0] * self.total
        for blocks in held:
            for block in blocks:
                counts[block] += 1
        if counts != self._holders:
            raise AssertionError("a KV block is held by nobody, or by more sequences than hold it")
        unheld = {block for block, count in enumerate(counts) if not count}
        if sorted(self._blank) != sorted(unheld - self._known_as.keys()):
            raise AssertionError("the blank blocks are not those that are neither held nor findable")
        if self._cached.blocks() != unheld & self._known_as.keys():
            raise AssertionError("the cached blocks are not those that are findable and not held")
        if {known: block for block, (known, _) in self._known_as.items()} != self._block_of:
            raise AssertionError("the prefix index does not match its blocks")

    def _evict(self) -> int:
        block = self._cached.evict()
        known, _ = self._known_as.pop(block)
        del self._block_of[known]
        return block
