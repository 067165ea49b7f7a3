"""The shipped base: a tiny byte-level Llama that this project trains from scratch by its own recipe.

Importing this package is cheap: it only says where the files are.
"""

from __future__ import annotations

from pathlib import Path

BASE_NAME = "multilora/base"
"""The stable name of the shipped base; adapters trained on it carry it as `base_model_name_or_path`."""

MODEL_DIR = Path(__file__).resolve().parent / "model"
"""Model and tokenizer files, for `AutoModelForCausalLM` and `AutoTokenizer`."""

ADAPTERS_DIR = Path(__file__).resolve().parent / "adapters"
"""One PEFT folder for each shipped adapter, named as its task in `training.tasks`."""


def shipped_adapters() -> dict[str, Path]:
    """The adapters that come with the base, by name."""
    folders = (path for path in sorted(ADAPTERS_DIR.glob("*")) if (path / "adapter_config.json").is_file())
    return {path.name: path for path in folders}
