"""The adapters that are compared: equal but for their magnitudes."""

from __future__ import annotations

import torch

from adapters.base import LinearSpec
from bench.dora import ADAPTERS, BOTH, DORA, KINDS, LORA, digests, random_adapter

LINEARS = {name: LinearSpec(name, 8, 6) for name in ("q", "lm_head")}


def test_each_request_has_an_adapter_of_its_own() -> None:
    assert digests(KINDS["base"]) == [None]
    for case in (LORA, DORA, BOTH):
        assert len(set(digests(KINDS[case]))) == ADAPTERS
    assert [digest for digest in digests(KINDS[BOTH]) if digest and digest.startswith("dora")] == [
        "dora-1",
        "dora-3",
        "dora-5",
        "dora-7",
    ]


def test_only_magnitudes_tell_them_apart() -> None:
    lora, dora = (random_adapter(LINEARS, 2, digest) for digest in ("lora-0", "dora-0"))
    assert set(lora.deltas) == set(dora.deltas) == {"q"}
    assert lora.deltas["q"].magnitude is None
    assert dora.deltas["q"].magnitude.shape == (6,)
    for delta in (lora.deltas["q"], dora.deltas["q"]):
        assert (delta.a.shape, delta.b.shape, delta.a.dtype) == ((2, 8), (6, 2), torch.bfloat16)
