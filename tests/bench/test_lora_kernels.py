"""What is compared with one another computes the same."""

from __future__ import annotations

import torch

from bench.lora_kernels import KernelStand

GROUPS = [[("q", 64, 48), ("k", 64, 16)], [("o", 48, 64)]]


def test_kernels_and_bmm_agree(gpu: torch.device) -> None:
    stand = KernelStand(GROUPS, 4, 5, 3, torch.float32, gpu)

    for ours, theirs in zip(stand.kernels(), stand.bmm(), strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert stand.nbytes == 3 * 4 * 4 * (64 + 64 + 48 + 16 + 64 + 48)
    assert stand.order.tolist() == [0, 0, 1, 1, 2]
