"""An adapter's files, read and checked in full against one base."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from adapters.base import BaseSpec
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.config import AdapterConfig, parse_config
from adapters.checkpoint.derived import Derived
from adapters.checkpoint.digest import content_digest
from adapters.checkpoint.labels import stored_labels
from adapters.checkpoint.plan import AdapterPlan, plan_adapter
from adapters.checkpoint.reader import AdapterReader
from adapters.checkpoint.safetensors_file import read_header
from adapters.checkpoint.values import check_values
from adapters.checkpoint.variants.common import BaseWeights
from adapters.delta import AdapterWeights
from adapters.errors import AdapterNotFound, AdapterTooLarge, InvalidAdapter
from adapters.limits import AdapterLimits


class Files:
    """What reads adapters of one base.

    Args:
        dtype: what they are computed in; values too large for it are refused. None: as they are stored.
        base_weights: the base's parameters, which some variants need; without them these are refused.
    """

    def __init__(
        self,
        base: BaseSpec,
        limits: AdapterLimits,
        dtype: torch.dtype | None = None,
        base_weights: BaseWeights | None = None,
    ) -> None:
        self._base, self._limits, self._dtype, self._base_weights = base, limits, dtype, base_weights
        self._intact: dict[str, tuple[int, int, int]] = {}

    def check(
        self, folder: Path, config: bytes, labels: tuple[str, ...]
    ) -> tuple[AdapterPlan, AdapterWeights]:
        """Read the files in `folder`, and check all that there is to check without running them.

        Raises:
            InvalidAdapter, AdapterTooLarge: it can't be served on this base.
        """
        plan = self._plan(config, folder / WEIGHTS_FILE)
        self._check_memory(plan.applied)
        digest = content_digest(plan.config, folder / WEIGHTS_FILE, self._limits, labels)
        adapter = self._read(plan, folder, digest, labels)
        self._check_memory(sum(tensor.numel() for tensor in adapter.tensors()))
        if self._dtype is not None:
            check_values(adapter, self._dtype)
        return plan, adapter

    def load(self, folder: Path, digest: str, dtype: torch.dtype | None = None) -> AdapterWeights:
        """Read the blob of `digest`, checked again.

        Raises:
            AdapterNotFound: there are no files for this digest.
            InvalidAdapter: the files are damaged, or their values do not fit `dtype`.
        """
        try:
            config = (folder / CONFIG_FILE).read_bytes()
            labels = stored_labels(folder)
            plan = self._plan(config, folder / WEIGHTS_FILE)
            self._check_digest(digest, plan.config, folder / WEIGHTS_FILE, labels)
            return self._read(plan, folder, digest, labels, dtype)
        except FileNotFoundError:
            raise AdapterNotFound(f"no adapter with digest {digest[:12]}") from None
        except InvalidAdapter as error:
            raise InvalidAdapter(f"stored adapter {digest[:12]} can't be loaded: {error}") from error

    def trust(self, digest: str, folder: Path) -> None:
        """This process has just hashed the files in `folder`."""
        self._intact[digest] = _status(folder / WEIGHTS_FILE)

    def forget(self, digest: str) -> None:
        """The files are gone."""
        self._intact.pop(digest, None)

    def _plan(self, config: bytes, weights: Path) -> AdapterPlan:
        header = read_header(weights, self._limits)
        return plan_adapter(parse_config(config, self._limits), header, self._base)

    def _read(
        self,
        plan: AdapterPlan,
        folder: Path,
        digest: str,
        labels: tuple[str, ...],
        dtype: torch.dtype | None = None,
    ) -> AdapterWeights:
        """The records of the files in `folder`, where what follows from the base's weights is kept too."""
        derived = Derived.load(folder, self._base.serving_digest, self._base_weights)
        reader = AdapterReader(plan, folder / WEIGHTS_FILE, derived, dtype)
        adapter = reader.read(digest, labels, self._limits.max_rank)
        if derived.changed:
            with suppress(OSError):  # on a full disk it is computed again the next time
                derived.save(folder, self._base.serving_digest)
        return adapter

    def _check_memory(self, numbers: int) -> None:
        most = self._limits.max_memory_bytes
        needed = numbers * (self._dtype or torch.float32).itemsize
        if most is not None and needed > most:
            raise AdapterTooLarge(
                f"the adapter takes {needed / 2**20:.1f} MiB in memory, more than all adapters together may "
                f"({most / 2**20:.1f} MiB); raise --adapter-memory-gb"
            )

    def _check_digest(
        self, digest: str, config: AdapterConfig, weights: Path, labels: tuple[str, ...]
    ) -> None:
        """Hash the files unless this process has done so since they were written."""
        seen = _status(weights)
        if self._intact.get(digest) != seen:
            if content_digest(config, weights, self._limits, labels) != digest:
                raise InvalidAdapter("its files were changed or damaged on disk; publish it again")
            self._intact[digest] = seen


def largest_rank(adapter: AdapterWeights) -> int:
    """Of all records, as they are served."""
    ranks = [adapter.max_rank, *(record.a.shape[1] for record in adapter.experts.values())]
    ranks += [record.a.shape[0] for record in adapter.embeddings.values() if record.a is not None]
    return max(ranks)


def _status(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file is written or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
