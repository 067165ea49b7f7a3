"""All that a run needs to go on exactly: safetensors and JSON, no pickle.

STATE/state.json             step, schedule, the optimizer's settings, progress, random state but torch's
STATE/trainable.safetensors  the trained tensors as they are in memory
STATE/optimizer.safetensors  the optimizer's tensors, by parameter number and name
STATE/random.safetensors     torch's random state on the CPU and on each GPU
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1


@dataclass(frozen=True, slots=True)
class SavedState:
    """What `save_state` was given.

    Attributes:
        step: optimizer steps that were taken.
        optimizer, schedule: for their `load_state_dict`.
        progress: plain values of whoever trains.
    """

    step: int
    trainable: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    progress: dict[str, Any]
    random: dict[str, Any] = field(repr=False)

    def restore_random(self) -> None:
        """Set the generators of Python, numpy and torch to where they were."""
        version, internal, gauss = self.random["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = self.random["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
        torch.random.set_rng_state(self.random["cpu"])
        for number, state in enumerate(self.random["cuda"]):
            if number < torch.cuda.device_count():
                torch.cuda.set_rng_state(state, number)


def save_state(
    folder: Path,
    *,
    step: int,
    trainable: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    schedule: Mapping[str, Any],
    progress: Mapping[str, Any],
) -> None:
    """Write it to `folder`, which is made, together with all random generators as they are now.

    Args:
        optimizer: a torch optimizer's `state_dict()`.
        schedule: a `LambdaLR`'s `state_dict()`, or `{}`.
        progress: JSON values.
    """
    folder.mkdir(parents=True)
    tensors, settings = _split(optimizer)
    name, keys, *rest = numpy.random.get_state(legacy=True)
    found = {
        "format": FORMAT,
        "step": step,
        "schedule": dict(schedule),
        "optimizer": settings,
        "random": {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest]},  # type: ignore[union-attr]
        "progress": dict(progress),
    }
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if used else []
    save_file(_plain(trainable), folder / "trainable.safetensors")
    save_file(_plain(tensors), folder / "optimizer.safetensors")
    chance = {"cpu": torch.random.get_rng_state()}
    chance |= {f"cuda.{number}": state for number, state in enumerate(cuda)}
    save_file(chance, folder / "random.safetensors")
    (folder / "state.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def load_state(folder: Path) -> SavedState:
    """What `save_state` wrote.

    Raises:
        ValueError: it is of another version of this program.
        OSError: it is not there.
    """
    found = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if found["format"] != FORMAT:
        raise ValueError(f"{folder}: a state of format {found['format']}; this version reads {FORMAT}")
    chance = load_file(folder / "random.safetensors")
    cuda = [chance[f"cuda.{number}"] for number in range(len(chance) - 1)]
    return SavedState(
        step=found["step"],
        trainable=load_file(folder / "trainable.safetensors"),
        optimizer=_join(load_file(folder / "optimizer.safetensors"), found["optimizer"]),
        schedule=found["schedule"],
        progress=found["progress"],
        random={**found["random"], "cpu": chance["cpu"], "cuda": cuda},
    )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and each with memory of its own, as safetensors wants them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _split(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `number.name`, and the rest as JSON values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for number, state in state_dict["state"].items():
        values[str(number)] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                values[str(number)][name] = value
    return tensors, {"state": values, "param_groups": state_dict["param_groups"]}


def _join(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {
        int(number): dict(values) for number, values in settings["state"].items()
    }
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state[int(number)][name] = tensor
    groups = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}
        for group in settings["param_groups"]
    ]
    return {"state": state, "param_groups": groups}
