"""What the tests of the proof share: a tiny base as a folder and in serving form, adapters of PEFT's."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.delta import AdapterWeights
from server.engine.base import ServedModel
from tests.kit import LIMITS
from tests.tiny import VOCAB, make_adapter, make_model


class Words:
    """A tokenizer: one token for each letter."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [3 + ord(letter) % (VOCAB - 3) for letter in text]


class Stand:
    """One family's base. Adapters are made once each."""

    def __init__(self, family: str, folder: Path) -> None:
        self.stock = make_model(family)
        self.base = folder / "base"
        self.stock.save_pretrained(self.base)
        self.model = ServedModel(copy.deepcopy(self.stock), name="base", digest=f"base-{family}")
        self._folder = folder
        self._made = cache(self._make)

    def adapter(self, name: str, **config: Any) -> Path:
        """A folder as PEFT saves it."""
        return self._made(name, json.dumps(config))

    def read(self, folder: Path) -> AdapterWeights:
        """What the product makes of it."""
        config = (folder / CONFIG_FILE).read_bytes()
        return read_adapter(
            config, folder / WEIGHTS_FILE, self.model.spec, LIMITS, base_weights=self.model.weight
        )

    def _make(self, name: str, config: str) -> Path:
        return make_adapter(self.stock, self._folder / name, sum(name.encode()), **json.loads(config))


def doubled(folder: Path, target: Path) -> Path:
    """The same adapter with one tensor twice as large, which is no rounding."""
    target.mkdir()
    (target / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())
    tensors = load_file(folder / WEIGHTS_FILE)
    first = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, first: 2 * tensors[first]}, target / WEIGHTS_FILE)
    return target
