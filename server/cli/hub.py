"""`hf:owner/repo[@revision]`: an adapter on the Hugging Face hub, downloaded by the client."""

from __future__ import annotations

import re
from pathlib import Path

from server.cli.exits import Exit, Failed
from server.cli.files import CONFIG_FILE, LABELS_FILE, LINEAGE_FILE, WEIGHTS_FILE

HUB = "hf:"
_SOURCE = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_REQUIRED = (CONFIG_FILE, WEIGHTS_FILE)


def fetch(source: str) -> Path:
    """The folder of the hub's cache with the adapter: JSON and safetensors, and no other file.

    Raises:
        Failed: it is no such source, or the hub does not have it or can't be reached.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise Failed(f"{source!r} is not like hf:owner/repo or hf:owner/repo@revision", Exit.USAGE)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, revision = match.groups()
    files = [*_REQUIRED, LABELS_FILE, LINEAGE_FILE, "config.json"]
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except LocalEntryNotFoundError:
        raise Failed(f"{source}: the hub can't be reached, and it was not downloaded before") from None
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise Failed(f"{source}: {str(error).strip().splitlines()[0]}") from None
    for file in _REQUIRED:
        if not (folder / file).is_file():
            raise Failed(f"{source} holds no {file}; only safetensors are taken")
    return folder
