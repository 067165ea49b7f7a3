"""Whether files are the adapter that their digest says."""

from __future__ import annotations

import sys
from pathlib import Path

from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.checkpoint.config import parse_config
from adapters.checkpoint.digest import content_digest
from adapters.checkpoint.labels import stored_labels
from adapters.errors import AdapterError
from adapters.limits import AdapterLimits

_ANY = AdapterLimits(
    max_rank=sys.maxsize, max_file_bytes=sys.maxsize, max_config_bytes=sys.maxsize, max_tensors=sys.maxsize
)
"""Limits are for what is published; they may have become tighter since."""


def why_damaged(folder: Path, digest: str) -> str | None:
    """None if the files in `folder` are the adapter with this digest, else what is wrong; reads them all."""
    try:
        config = parse_config((folder / CONFIG_FILE).read_bytes(), _ANY)
        found = content_digest(config, folder / WEIGHTS_FILE, _ANY, stored_labels(folder))
    except (AdapterError, OSError) as error:
        return f"its files can't be read: {error}"
    return None if found == digest else f"its content has digest {found[:12]}"
