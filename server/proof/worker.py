"""The process that runs PEFT's own forward: `python -m server.proof.worker`. The server never imports it.

Reads requests from standard input and answers on standard output, one after another, as `wire.py` has them:

    {"folder": ..., "dtype": "float32", "quantization": null, "nice": 10, "idle_seconds": 300}   once
    {"adapter": ..., "subject": {...}, "prompts": [[...], ...], "positions": 4}    -> the rows of each prompt

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
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import safe_open
from torch import Tensor, nn

from server.engine import loading
from server.proof.stock import StockBase, stock_rows
from server.proof.subject import Subject
from server.proof.wire import pack, unpack

_OWN_WEIGHTS = ("pissa", "olora", "corda", "lora_ga", "loftq", "kasa")
"""Ways of beginning a LoRA that write to the base's weights, by what their name begins with."""


class Oracle:
    """One base, and PEFT's numbers of adapters on it."""

    def __init__(self, base: StockBase) -> None:
        self._base = base

    def rows(
        self, adapter: Path, subject: Subject, prompts: list[list[int]], positions: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each prompt, without the adapter and with it, what `stock_rows` gives.

        A head is the adapter's in both.
        """
        stock = self._base.model(subject)

        def computed(model: Any) -> list[Tensor]:
            return [stock_rows(model, subject, prompt, positions) for prompt in prompts]

        before = computed(stock)
        model = _load(_shared_copy(stock, adapter), adapter)
        adapted = computed(model)
        base = before
        if subject.labels:
            _disable_all_but(model, subject.head)
            base = computed(model)
        del model
        gc.collect()
        if not all(map(torch.equal, before, computed(stock))):
            self._base.forget()
        return base, adapted


def _disable_all_but(model: Any, head: Iterable[str]) -> None:
    """Switch off what PEFT wrapped, save the modules with these names."""
    for name, module in model.named_modules():
        wrapped = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if wrapped and not {*name.split(".")} & {*head}:
            module.enable_adapters(False)


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
    dtype = loading.DTYPES[begin["dtype"]]
    oracle = Oracle(StockBase(Path(begin["folder"]), dtype, begin["quantization"]))
    _write(target, pack({"ready": True}))
    while select.select([source], [], [], float(begin["idle_seconds"]))[0]:
        request, _ = unpack(lambda size: _take(source, size))
        try:
            base, adapted = oracle.rows(
                Path(request["adapter"]),
                Subject.from_json(request["subject"]),
                request["prompts"],
                int(request["positions"]),
            )
        except Exception as error:  # PEFT raises many kinds; all mean that it has no answer
            reason = (str(error).strip().splitlines() or [""])[0]
            _write(target, pack({"error": f"{type(error).__name__}: {reason}"}))
            continue
        named = {f"base.{index}": rows for index, rows in enumerate(base)}
        named |= {f"adapter.{index}": rows for index, rows in enumerate(adapted)}
        _write(target, pack({}, named))


if __name__ == "__main__":
    with suppress(_Ended, BrokenPipeError, KeyboardInterrupt):
        main()
    sys.exit(0)
