"""How much a server takes: from settings, the base and the memory there is, to sizes of the engine."""

from __future__ import annotations

import logging
from typing import Any

import torch

from server.engine import loading
from server.engine.core import EngineConfig
from server.machine import free_memory
from server.settings import GIB, Settings

log = logging.getLogger(__name__)
_KV_SHARE = 0.25  # of free memory, when --kv-cache-gb is not given
_KV_MOST_CPU = 4 * GIB


class DoesNotFit(Exception):
    """The settings ask for more than there is; one line."""


def engine_config(settings: Settings, config: Any, model: Any) -> EngineConfig:
    """KV blocks from the memory there is, and the context that fits into them; an encoder has no KV.

    Raises:
        DoesNotFit: what the settings ask for.
    """
    longest = loading.context_length(config)
    asked = settings.max_model_len or longest
    if asked > longest and loading.base_kind(config) != "encoder-decoder":  # T5's positions have no end
        raise DoesNotFit(f"--max-model-len {asked}: this model sees at most {longest} tokens")
    blocks = 0 if loading.base_kind(config) == "encoder" else _kv_blocks(settings, model, asked)
    fits = blocks * settings.block_size or asked
    on_cpu = model.device.type == "cpu"
    return EngineConfig(
        max_model_len=min(asked, fits),
        kv_blocks=blocks,
        block_size=settings.block_size,
        max_batch_tokens=settings.max_batch_tokens or (512 if on_cpu else 4096),
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        prefix_cache=settings.prefix_cache,
    )


def _kv_blocks(settings: Settings, model: Any, asked: int) -> int:
    """As many as are useful and fit into the memory for them, to hold requests of `asked` tokens."""
    nbytes = int(settings.kv_cache_gb * GIB) if settings.kv_cache_gb else _default_kv_bytes(model.device)
    useful = -(-asked // settings.block_size) * max(settings.max_running, 1) * 2
    blocks: int = min(nbytes // (model.kv_bytes * settings.block_size), useful)
    fits = blocks * settings.block_size
    if fits < (asked if settings.max_model_len else settings.block_size):
        raise DoesNotFit(
            f"the KV cache of {nbytes / GIB:.2f} GiB holds {fits} tokens, fewer than {asked}; "
            "raise --kv-cache-gb or lower --max-model-len"
        )
    if fits < asked:
        log.warning("the KV cache holds %d tokens: requests are limited to that instead of %d", fits, asked)
    return blocks


def _default_kv_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.8)
    return min(int(free_memory() * _KV_SHARE), _KV_MOST_CPU)
