"""The process that runs PEFT's own forward: `python -m server.proof.worker`. The server never imports it.

Reads requests from standard input and answers on standard output, one after another, as `wire.py` has them:

    {"folder": ..., "dtype": "float32", "nice": 10, "idle_seconds": 300}      once: the base
    {"adapter": ..., "prompts": [[...], ...], "positions": 4}                 -> logits of each prompt

The base is read once, and every adapter gets a module tree of its own over the base's tensors, because PEFT
rebuilds what it wraps, and writes to the weights for some variants. The base's logits before and after must
be the same bit for bit; else the base is read again. It ends when nothing comes for a while, or the server is
gone.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import select
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn

from server.engine import loading
from server.proof.wire import pack, unpack

_OWN_WEIGHTS = ("pissa", "olora", "corda", "lora_ga", "loftq", "kasa")
"""Ways of beginning a LoRA that write to the base's weights, by what their name begins with."""


class Oracle:
    """One base, and PEFT's logits of adapters on it."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._folder, self._dtype = folder, dtype
        self._base: Any = None

    def logits(
        self, adapter: Path, prompts: list[list[int]], positions: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The base's and the adapter's: float32 `(positions, vocabulary)` of each prompt's last tokens."""
        if self._base is None:
            config = loading.load_config(self._folder)
            self._base = loading.load_model(self._folder, config, self._dtype, torch.device("cpu"))
        before = _last_logits(self._base, prompts, positions)
        model = _load(_shared_copy(self._base, adapter), adapter)
        adapted = _last_logits(model, prompts, positions)
        del model
        gc.collect()
        after = _last_logits(self._base, prompts, positions)
        if not all(map(torch.equal, before, after)):
            self._base = None
        return before, adapted


def _load(base: Any, adapter: Path) -> Any:
    """PEFT's model. Where the file has nothing for what it wrapped, PEFT only warns."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, str(adapter)).eval()
    for warning in map(str, (entry.message for entry in seen)):
        if "missing adapter keys" in warning:
            raise ValueError(warning)
    return model


def _shared_copy(base: Any, adapter: Path) -> Any:
    """The module tree of `base` anew, over the same memory save that of what PEFT writes to.

    That is what the file brings a value for, and all there is where a variant begins by changing the base.
    """
    config = json.loads((adapter / "adapter_config.json").read_text())
    begins = str(config.get("init_lora_weights")).lower()
    writes = begins.startswith(_OWN_WEIGHTS) or any("kasa" in key and config[key] for key in config)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        keys: list[str] = file.keys()
    stored = {key.removeprefix("base_model.model.").replace(".base_layer", "") for key in keys}
    memo: dict[int, Any] = {}
    tensors: Iterable[tuple[str, Tensor]] = chain(
        base.named_parameters(remove_duplicate=False), base.named_buffers(remove_duplicate=False)
    )
    for name, tensor in tensors:
        if id(tensor) in memo:
            continue
        own = tensor.detach()
        if writes or name in stored or tensor.dim() < 2:
            own = own.clone()
        memo[id(tensor)] = nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own
    return copy.deepcopy(base, memo)


@torch.inference_mode(False)
@torch.no_grad()
def _last_logits(model: Any, prompts: list[list[int]], positions: int) -> list[Tensor]:
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        found.append(logits[0, -positions:].float().contiguous())
    return found


class _Ended(Exception):
    """The server closed its end, or asked nothing for a while."""


def _take(handle: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(handle, min(size - len(parts), 1024**2))
        if not part:
            raise _Ended
        parts += part
    return bytes(parts)


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def main() -> None:
    """Serve until the other end closes, or `idle_seconds` passed without a request."""
    source, target = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    begin, _ = unpack(lambda size: _take(source, size))
    os.nice(int(begin["nice"]))
    with suppress(OSError):  # if memory ends, this process goes first, not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    warnings.simplefilter("ignore")
    oracle = Oracle(Path(begin["folder"]), loading.DTYPES[begin["dtype"]])
    _write(target, pack({"ready": True}))
    while select.select([source], [], [], float(begin["idle_seconds"]))[0]:
        request, _ = unpack(lambda size: _take(source, size))
        try:
            base, adapted = oracle.logits(
                Path(request["adapter"]), request["prompts"], int(request["positions"])
            )
        except Exception as error:  # PEFT raises many kinds; all mean that it has no answer
            reason = (str(error).strip().splitlines() or [""])[0]
            _write(target, pack({"error": f"{type(error).__name__}: {reason}"}))
            continue
        named = {f"base.{index}": logits for index, logits in enumerate(base)}
        named |= {f"adapter.{index}": logits for index, logits in enumerate(adapted)}
        _write(target, pack({}, named))


if __name__ == "__main__":
    with suppress(_Ended, BrokenPipeError, KeyboardInterrupt):
        main()
    sys.exit(0)
