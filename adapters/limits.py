"""The bounds that an adapter must keep, checked before anything of that size is read or allocated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """Declared bounds; over one of them is `AdapterTooLarge`.

    Attributes:
        max_rank: largest rank of any module.
        max_file_bytes: largest `adapter_model.safetensors`.
        max_config_bytes: largest `adapter_config.json`.
        max_tensors: most tensors in one file.
        max_adapters: most live adapter versions in one registry.
        max_memory_bytes: most that one adapter may take in the type that it is served in; None: no bound.
    """

    max_rank: int = 256
    max_file_bytes: int = 2 * 1024**3
    max_config_bytes: int = 1024**2
    max_tensors: int = 100_000
    max_adapters: int = 100_000
    max_memory_bytes: int | None = None
