"""What a run would be: its parameters, memory and time, before anything is trained.

`choose` makes a whole `TrainSpec` from facts by arithmetic alone; `read_base` gets the facts of a base
from its config, without its weights. Importing this package does not import torch.
"""

from __future__ import annotations

from training.plan.auto import Chosen, choose
from training.plan.batch import Batch, solve_batch
from training.plan.facts import BaseFacts, Linear, RowFacts, read_base, read_rows
from training.plan.memory import parse_memory
from training.plan.plan import Plan, make_plan
from training.plan.presets import PRESETS, PresetName

__all__ = [
    "PRESETS",
    "BaseFacts",
    "Batch",
    "Chosen",
    "Linear",
    "Plan",
    "PresetName",
    "RowFacts",
    "choose",
    "make_plan",
    "parse_memory",
    "read_base",
    "read_rows",
    "solve_batch",
]
