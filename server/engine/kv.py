"""Paged KV: a pool of blocks, and the prefix cache over the blocks that are full.

A full block is known by a hash chained over everything before it, rooted in (scope, base digest, adapter
digest). Blocks that nobody holds stay findable until their room is needed, least recently freed first.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence


def root_hash(scope: str, base_digest: str, adapter_digest: str | None) -> bytes:
    """The start of a hash chain. Fields are length-prefixed, so that no two triples can collide."""
    hasher = hashlib.blake2b(digest_size=16)
    for field in (scope, base_digest, adapter_digest or ""):
        data = field.encode()
        hasher.update(struct.pack("<Q", len(data)) + data)
    return hasher.digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of one full block after `parent`."""
    return hashlib.blake2b(parent + struct.pack(f"<{len(tokens)}I", *tokens), digest_size=16).digest()


class BlockPool:
    """Blocks `0 .. total-1`, each held by any number of sequences."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._holders = [0] * total
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - self.free

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks to write to, or None if there are not that many."""
        if count > len(self._free):
            return None
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
            self._forget(block)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back. Its later blocks are reused first: earlier ones are likelier prefixes."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if block not in self._hash_of:
                    self._free.move_to_end(block, last=False)

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Take hold of the blocks of the longest cached prefix of `hashes`."""
        blocks: list[int] = []
        for known in hashes:
            block = self._block_of.get(known)
            if block is None:
                break
            self._free.pop(block, None)
            self._holders[block] += 1
            blocks.append(block)
        return blocks

    def cached(self, known: bytes) -> bool:
        return known in self._block_of

    def publish(self, block: int, known: bytes) -> None:
        """Make a full block findable. A block with the same content keeps its place."""
        if known not in self._block_of and block not in self._hash_of:
            self._block_of[known] = block
            self._hash_of[block] = known

    def clear_cache(self) -> None:
        """Forget all cached prefixes; held blocks stay held."""
        self._hash_of.clear()
        self._block_of.clear()

    def check(self, held: Sequence[Sequence[int]]) -> None:
        """Raise `AssertionError` unless `held`, the tables of all live sequences, explains every hold."""
        counts = [0] * self.total
        for blocks in held:
            for block in blocks:
                counts[block] += 1
        if counts != self._holders:
            raise AssertionError("a KV block is held by nobody, or by more sequences than hold it")
        if {block for block, count in enumerate(counts) if not count} != self._free.keys():
            raise AssertionError("the free list is not the set of unheld blocks")
        if {h: b for b, h in self._hash_of.items()} != self._block_of:
            raise AssertionError("the prefix index does not match its blocks")

    def _forget(self, block: int) -> None:
        known = self._hash_of.pop(block, None)
        if known is not None:
            del self._block_of[known]
