"""An adapter upload: its parts, and what they say."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from adapters.checkpoint.labels import MAX_LABELS_BYTES
from adapters.registry.records import AdapterVersion, Caller, Lineage, Promote
from server.api.errors import APIError
from server.api.lineage import LINEAGE_BYTES, parse_lineage
from server.api.multipart import Form, receive
from server.api.registry import Registry
from server.settings import MIB, Settings

FOLDER = "uploads"
NAME_BYTES = 256
QUANTIZATION_BYTES = 32
CONFIG_BYTES = MIB
WORD_BYTES = 64
_REQUIRED = ("name", "config", "weights")
_PROMOTE = ("auto", "yes", "no")
_WANTED = "the adapter as multipart/form-data with parts name, config and weights"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Upload:
    """The parts, those after `weights` if they were sent.

    Attributes:
        weights: in a folder that goes with the request.
        digest: of the content, as the client expects it; hex.
    """

    name: str
    config: bytes
    weights: Path
    labels: bytes | None
    quantization: str | None
    lineage: Lineage
    promote: Promote
    digest: str | None

    def publish(self, registry: Registry, caller: Caller) -> tuple[AdapterVersion, bool]:
        """Check it and make it a version, before this returns."""
        return self._sent_to(registry.publish, caller)

    def known(self, registry: Registry, caller: Caller) -> AdapterVersion | None:
        """The newest version, if its content is what the client says that it sends."""
        newest = registry.versions(self.name, caller)[-1:]
        return newest[0] if newest and newest[0].digest == self.digest else None

    def begin(self, registry: Registry, caller: Caller) -> AdapterVersion:
        """Make it a version whose check is to come; the registry keeps the files."""
        return self._sent_to(registry.begin, caller)

    def _sent_to(self, take: Callable[..., T], caller: Caller) -> T:
        return take(
            self.name,
            self.config,
            self.weights,
            "upload",
            self.labels,
            self.quantization,
            caller=caller,
            lineage=self.lineage,
            promote=self.promote,
            digest=self.digest,
        )


@asynccontextmanager
async def receive_upload(request: Request, settings: Settings) -> AsyncIterator[Upload]:
    """Read the body of `request` into a folder on the file system where adapters are kept."""
    limits = _limits(settings.max_adapter_mb * MIB)
    async with upload_folder(settings.data_dir) as folder:
        weights = folder / "weights"
        form = await receive(request, limits, "weights", weights, _WANTED)
        form.require(_REQUIRED)
        _check_sha256(form)
        parts = {part: bytes(value) for part, value in form.parts.items()}
        yield Upload(
            name=_name(form),
            config=parts["config"],
            weights=weights,
            labels=parts.get("labels"),
            quantization=form.word("quantization"),
            lineage=parse_lineage(parts["lineage"]) if "lineage" in parts else Lineage(),
            promote=_promote(form),
            digest=_hex(form, "digest"),
        )


@asynccontextmanager
async def upload_folder(data_dir: Path) -> AsyncIterator[Path]:
    """A new folder on the file system of `data_dir`, gone afterwards."""
    folder = await run_in_threadpool(_make_folder, data_dir / FOLDER)
    try:
        yield folder
    finally:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


def remove_left_over(data_dir: Path) -> None:
    """Remove what uploads left that were killed with their server; the folder belongs to one at a time."""
    shutil.rmtree(data_dir / FOLDER, ignore_errors=True)


def _make_folder(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="upload-", dir=parent))


def _limits(weights: int) -> dict[str, int]:
    return {
        "name": NAME_BYTES,
        "config": CONFIG_BYTES,
        "weights": weights,
        "labels": MAX_LABELS_BYTES,
        "quantization": QUANTIZATION_BYTES,
        "lineage": LINEAGE_BYTES,
        "promote": WORD_BYTES,
        "digest": WORD_BYTES,
        "sha256": WORD_BYTES,
    }


def _name(form: Form) -> str:
    try:
        return form.parts["name"].decode()
    except UnicodeDecodeError:
        raise APIError(400, "name: not UTF-8 text", param="name", code="invalid_name") from None


def _hex(form: Form, part: str) -> str | None:
    """A SHA-256, if the part was sent."""
    value = form.word(part)
    if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
        raise APIError(400, f"{part}: must be 64 of 0-9, a-f", param=part)
    return value


def _promote(form: Form) -> Promote:
    value = form.word("promote") or "auto"
    if value not in _PROMOTE:
        raise APIError(400, f"promote: must be one of {', '.join(_PROMOTE)}", param="promote")
    return cast(Promote, value)


def _check_sha256(form: Form) -> None:
    """Whether the weights are those that were sent, if the client said which."""
    if _hex(form, "sha256") not in (None, form.sha256):
        message = f"sha256: the weights that arrived have {form.sha256}; send them again"
        raise APIError(400, message, param="sha256", code="checksum_mismatch")
