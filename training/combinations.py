"""What can't be trained together, known from the spec alone: told before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.spec import TrainSpec

CHANGES_BASE = ("lora-ga", "pissa", "olora")
"""Methods that take what A and B begin with out of the base's weights, for as long as they train."""
FINDS_RANKS = ("adalora", "eva")
CALIBRATED = ("lora-ga", "eva")
"""Methods that look at batches of the data before the first step."""


def problem(spec: TrainSpec) -> str | None:
    """Why PEFT can't train this, and what to do; None: it can."""
    lora, method = spec.lora, spec.lora.method
    if method in FINDS_RANKS and lora.rank_pattern:
        return (
            f"{method} finds the rank of each module itself: leave rank_pattern out, or take another method"
        )
    if method == "adalora" and lora.alpha_pattern:
        return "adalora has one alpha for all modules: leave alpha_pattern out, or take another method"
    if spec.objective == "dpo":
        if method in CHANGES_BASE:
            return f"dpo compares with the base, which {method} changes: take lora, or another method"
        if method == "adalora":
            return "dpo has no place for adalora's penalty: take lora, or another method"
        if lora.bias != "none":
            return f"dpo compares with the base, whose own biases bias={lora.bias} trains: take bias none"
        if "lm_head" in (*lora.modules_to_save, *lora.target_modules):
            return "dpo reads the head's own weights: leave lm_head out of modules_to_save and target_modules"
    return None
