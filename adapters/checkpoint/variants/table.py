"""Which module reads which `peft_type`, and which are refused, with what to do."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from adapters.checkpoint.variants.common import Tuner, fault
from adapters.checkpoint.variants.unsupported import UNSUPPORTED

# LORA and ADALORA are read by `adapters/checkpoint/reader.py` itself.
READERS = {
    "BEFT": "beft",
    "DEFT": "deft",
    "DELORA": "delora",
    "GRALORA": "gralora",
    "HRA": "hra",
    "IA3": "ia3",
    "LOHA": "loha",
    "LOKR": "lokr",
    "MISS": "miss",
    "PVERA": "pvera",
    "TINYLORA": "tinylora",
    "UNILORA": "unilora",
    "VBLORA": "vblora",
    "VERA": "vera",
}
_ELSE = "there is no reader for it; merge it into a copy of the base and serve that, or train a LoRA"


def tuner(peft_type: str) -> Tuner:
    """The module that reads adapters of `peft_type`.

    Raises:
        InvalidAdapter: nothing here does.
    """
    name = READERS.get(peft_type)
    if name is None:
        raise fault(f"peft_type {peft_type!r:.60} is not supported: {UNSUPPORTED.get(peft_type, _ELSE)}")
    return cast(Tuner, import_module(f"adapters.checkpoint.variants.{name}"))
