"""Reads the corpus in a process of its own, whose memory is bounded, and tells what came of it as JSON.

python -m tests.promises.mutated_reading FOLDER NUMBER
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.base import BaseSpec
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.reader import read_adapter
from adapters.checkpoint.safetensors_file import map_file, read_header, tensor_at
from adapters.delta import AdapterWeights
from adapters.errors import AdapterTooLarge, InvalidAdapter
from adapters.limits import AdapterLimits
from tests.adapters.records import base_of, trained, weights_of
from tests.promises.mutations import Files, corpus

MIB = 1024**2
ROOM = 1024 * MIB
"""Address space beyond what the process has when it begins to read."""
LIMITS = AdapterLimits()
TARGETS = ["q_proj", "down_proj"]


def lora(**options: Any) -> PeftConfig:
    return peft.LoraConfig(**{"r": 2, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | options)


CONFIGS = [
    lora(),
    lora(r=3, use_rslora=True, rank_pattern={"q_proj": 1}, alpha_pattern={"down_proj": 5}),
    lora(use_dora=True),
    lora(target_modules=r".*\.[01]\.self_attn\.(q|v)_proj"),
    lora(modules_to_save=["norm"]),
    lora(trainable_token_indices=[3, 9]),
    lora(target_modules=["q_proj", "embed_tokens"]),
    lora(alora_invocation_tokens=[5, 6], target_modules=["q_proj"]),
    peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=TARGETS, task_type="CAUSAL_LM"),
    peft.VeraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    peft.LoKrConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"),
    peft.VBLoRAConfig(r=2, num_vectors=20, vector_length=4, target_modules=TARGETS, task_type="CAUSAL_LM"),
]


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()


def seeds(model: LlamaForCausalLM, folder: Path) -> Iterator[Files]:
    """What PEFT saves by each config, and the first of them in bfloat16."""
    for number, config in enumerate(CONFIGS):
        made = folder / str(number)
        trained(model, made, config)
        yield Files((made / CONFIG_FILE).read_bytes(), (made / WEIGHTS_FILE).read_bytes())
    half = {key: tensor.bfloat16() for key, tensor in load_file(folder / "0" / WEIGHTS_FILE).items()}
    save_file(half, folder / "half", {"format": "pt"})
    yield Files((folder / "0" / CONFIG_FILE).read_bytes(), (folder / "half").read_bytes())


class Reading:
    """Reads mutants and keeps what is wrong with what came of them."""

    def __init__(self, folder: Path) -> None:
        model = tiny()
        self.base: BaseSpec = base_of(model)
        self.weights = weights_of(model)
        self.path = folder / "mutant"
        self.seeds = list(seeds(model, folder))
        self.sound = [self.read(files) for files in self.seeds]
        self.outcomes: dict[str, Counter[str]] = {}
        self.slowest = 0.0
        self.faults: list[str] = []

    def read(self, files: Files) -> AdapterWeights:
        self.path.unlink(missing_ok=True)  # what was read before is mapped from it
        self.path.write_bytes(files.weights)
        return read_adapter(files.config, self.path, self.base, LIMITS, base_weights=self.weights)

    def run(self, number: int) -> None:
        for at, (index, mutant) in enumerate(corpus(self.seeds, number)):
            began = time.process_time()
            try:
                weights = self.read(mutant.files)
            except (InvalidAdapter, AdapterTooLarge) as error:
                outcome, wrong = type(error).__name__, fault_of_message(str(error))
            except Exception:
                outcome, wrong = "error", traceback.format_exc(limit=-3)
            else:
                outcome, wrong = "read", self.fault_of(weights, index, mutant.files)
            self.slowest = max(self.slowest, time.process_time() - began)
            self.outcomes.setdefault(mutant.kind, Counter())[outcome] += 1
            if wrong:
                self.faults.append(f"mutant {at}, {mutant.kind} of seed {index}: {wrong}")

    def fault_of(self, weights: AdapterWeights, index: int, files: Files) -> str:
        """What is wrong with a mutant that was read: it must be sound by the libraries' measure, all of it
        finite, and the same as before if it is said to be."""
        try:
            theirs, config = load_file(self.path), json.loads(files.config)
        except (SafetensorError, ValueError) as error:
            return f"read, but not valid: {error}"
        header = read_header(self.path, LIMITS)
        data = map_file(self.path, header)
        if theirs.keys() != header.keys() or not isinstance(config, dict):
            return "other tensors than the library finds"
        if not all(equal(theirs[key], tensor_at(data, info)) for key, info in header.items()):
            return "other values than the library reads"
        if not all(bool(tensor.isfinite().all()) for tensor in weights.tensors()):
            return "a value that is not finite"
        sound = self.sound[index]
        if weights.digest == sound.digest and not same(weights, sound):
            return "another adapter under the same digest"
        return ""


def fault_of_message(message: str) -> str:
    """One line that can be shown, and is not made long by what it quotes."""
    try:
        message.encode()
    except UnicodeEncodeError:
        return f"the message has no UTF-8 form: {message!a}"
    return (
        "" if message.isprintable() and 0 < len(message) < 2000 else f"not one clear line: {message!r:.500}"
    )


def equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, type and shape."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)


def same(one: AdapterWeights, other: AdapterWeights) -> bool:
    ours, theirs = list(one.tensors()), list(other.tensors())
    scales = [{module: delta.scale for module, delta in weights.deltas.items()} for weights in (one, other)]
    return (
        len(ours) == len(theirs)
        and scales[0] == scales[1]
        and one.invocation == other.invocation
        and all(equal(left, right) for left, right in zip(ours, theirs, strict=True))
    )


def memory(name: str) -> int:
    """A line of `/proc/self/status`, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main(folder: Path, number: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    reading = Reading(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = memory("VmRSS")
    most = memory("VmSize") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    began = time.process_time()
    reading.run(number)
    return {
        "outcomes": reading.outcomes,
        "faults": reading.faults,
        "slowest": reading.slowest,
        "seconds": time.process_time() - began,
        "grown": memory("VmHWM") - before,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
