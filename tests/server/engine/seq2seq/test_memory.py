"""The size of a memory is what was announced of it."""

from __future__ import annotations

import torch

from server.engine.seq2seq.memory import Memory, MemoryShape


def test_it_takes_what_its_tokens_are_said_to_take() -> None:
    shape = MemoryShape(3, 4, 12, torch.bfloat16, torch.device("cpu"))
    memory = Memory(shape, 7, 5)
    assert memory.source.shape == (3, 2, 7, 4, 12)
    assert memory.target.shape == (3, 2, 5, 4, 12)
    assert memory.source.nbytes + memory.target.nbytes == 12 * shape.nbytes
    assert memory.length == 0
