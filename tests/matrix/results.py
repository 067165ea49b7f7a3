"""What the command measured, in `results.json`: cells by family and variant, and what they are of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftConfig

from tests.matrix.cells import PROMPTS, Cell
from tests.matrix.families import FAMILIES
from tests.matrix.variants import VARIANTS

FILE = Path(__file__).with_name("results.json")
Cells = dict[str, Cell]


def read_results() -> dict[str, Cells]:
    """Each family's cells; empty where they were measured with other variants than there are now."""
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    return {
        family: {variant: Cell(**cell) for variant, cell in stored[family]["cells"].items()}
        if stored.get(family, {}).get("of") == configs_digest(family)
        else {}
        for family in FAMILIES
    }


def write_results(results: Mapping[str, Cells]) -> None:
    stored = {
        family: {
            "of": configs_digest(family),
            "cells": {variant: _shown(cell) for variant, cell in results[family].items()},
        }
        for family in FAMILIES
        if results[family]
    }
    FILE.write_text(json.dumps(stored, indent=1) + "\n")


def configs_digest(family: str) -> str:
    """Of all that PEFT is asked for on `family`, of its version, and of the prompts."""
    configs: dict[str, object] = {
        variant: _config(make(FAMILIES[family])) for variant, make in VARIANTS.items()
    }
    return hashlib.sha256(json.dumps([PROMPTS, configs], default=_plain).encode()).hexdigest()[:16]


def _config(made: PeftConfig | str) -> object:
    return made if isinstance(made, str) else {"version": made.peft_version, **made.to_dict()}


def _plain(value: Any) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _shown(cell: Cell) -> dict[str, object]:
    """Two digits of each number; nothing of what is None."""
    return {
        name: float(f"{value:.1e}") if isinstance(value, float) else value
        for name, value in asdict(cell).items()
        if value is not None
    }
