"""The ways to train an adapter: a base made ready, PEFT's modules on it, and what of them is kept.

model, tokenizer = load_base(base, spec, labels)
model = wrap(model, spec, calibration, total_steps)
after_step = step_hook(model, spec)     call it after each optimizer step, before gradients are dropped
save(model, folder, base_name=..., spec=spec)
"""

from training.methods.adalora import penalty, step_hook
from training.methods.loading import load_base
from training.methods.saving import save
from training.methods.state import load_trainable_state, trainable_state
from training.methods.wrapping import wrap

__all__ = ["load_base", "load_trainable_state", "penalty", "save", "step_hook", "trainable_state", "wrap"]
