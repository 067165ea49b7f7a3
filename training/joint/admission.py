"""Which runs can train together, known from their specs alone."""

from __future__ import annotations

from training.spec import TrainSpec

METHODS = ("lora", "rslora")


def can_join(spec: TrainSpec) -> str | None:
    """Why a run must train alone; None: it can share its forward passes with others on the same base."""
    lora = spec.lora
    if lora.method not in METHODS:
        return f"method {lora.method} trains alone: only {' and '.join(METHODS)} train together"
    if spec.task != "CAUSAL_LM":
        return f"task {spec.task} trains alone: only CAUSAL_LM trains together"
    if spec.objective != "supervised":
        return f"objective {spec.objective} trains alone: only supervised trains together"
    if lora.bias != "none":
        return f"bias {lora.bias} trains alone: the base's biases are shared"
    if lora.modules_to_save:
        return f"modules_to_save {', '.join(lora.modules_to_save)} train alone: the base's modules are shared"
    if spec.gradient_checkpointing and lora.dropout:
        return "dropout with gradient_checkpointing trains alone: leave one of them out"
    return None


def shares_base(spec: TrainSpec) -> tuple[str, str, bool]:
    """Runs in which this is the same can use one copy of the base."""
    return spec.precision, spec.device, spec.gradient_checkpointing
