"""`--preset`: what no flag says is chosen as `multilora train plan` shows it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def add_preset_flag(parser: argparse.ArgumentParser) -> None:
    """Which rules choose; the names are those of `training.plan`, which is heavy to import."""
    parser.add_argument(
        "--preset",
        choices=("modern", "tutorial"),
        default="modern",
        help="what chooses all that is not given; `multilora train plan` shows it with its reasons (modern)",
    )


def preset_fields(
    arguments: argparse.Namespace,
    fields: Mapping[str, Any],
    places: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All fields of a spec: those that were given, and the preset's choices for the others.

    Args:
        fields: as `given_fields` has them.
        places: `data`, and `model` and `parent` if they were given.
        say: told what was chosen, in one line.

    Raises:
        ValueError: the file has bad lines; the base can't be read, or not trained on such rows.
        OSError: a file can't be read.
    """
    import torch

    from training.base import MODEL_DIR
    from training.plan import choose, read_base, read_rows
    from training.spec import spec_to_json

    base = places.get("model", str(MODEL_DIR))
    rows = read_rows(Path(places["data"]), base)
    cuda = fields.get("device") != "cpu" and torch.cuda.is_available()
    given = {**{name: value for name, value in fields.items() if name != "lora"}, **fields["lora"]}
    spec = choose(
        read_base(base, given.get("task", rows.task), rows.classes),
        rows,
        arguments.preset,
        cuda=cuda,
        gpu_bytes=torch.cuda.mem_get_info()[1] if cuda else None,
        given=given,
    ).spec
    chosen = spec_to_json(spec)
    lora = spec.lora
    shape = "" if "parent" in places else f"{lora.method} of rank {lora.rank}, alpha {lora.alpha:g}, "
    say(
        f"{arguments.preset}: {shape}learning rate {spec.learning_rate:g}, "
        f"{spec.total_steps(rows.rows):,} steps of {spec.batch_size} x {spec.accumulation} rows"
    )
    if "parent" in places:
        del chosen["lora"]  # the adapter to go on from has its own shape
    return chosen
