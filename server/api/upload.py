"""An adapter upload: multipart parts straight to disk, each part known, bounded and wanted."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from adapters.checkpoint.labels import MAX_LABELS_BYTES
from adapters.registry.records import AdapterVersion, Caller, Lineage, Promote
from server.api.errors import APIError
from server.api.lineage import LINEAGE_BYTES, parse_lineage
from server.api.registry import Registry
from server.settings import MIB, Settings

FOLDER = "uploads"
NAME_BYTES = 256
QUANTIZATION_BYTES = 32
CONFIG_BYTES = MIB
WRITE_BYTES = MIB
"""Weights gather in memory up to this size before a thread writes them."""
WORD_BYTES = 64
IDLE_SECONDS = 60.0
_REQUIRED = ("name", "config", "weights")
_PROMOTE = ("auto", "yes", "no")
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
    boundary = _boundary(request)
    folder = await run_in_threadpool(_make_folder, settings.data_dir / FOLDER)
    try:
        weights = folder / "weights"
        with weights.open("wb") as file:
            form = _Form(boundary, settings.max_adapter_mb * MIB)
            async for chunk in _chunks(request):
                form.feed(chunk)
                if len(form.weights) >= WRITE_BYTES:
                    await run_in_threadpool(form.write, file)
            form.finish()
            await run_in_threadpool(form.write, file)
        form.check_sha256()
        parts = {part: bytes(value) for part, value in form.parts.items()}
        yield Upload(
            name=form.name(),
            config=parts["config"],
            weights=weights,
            labels=parts.get("labels"),
            quantization=form.word("quantization"),
            lineage=parse_lineage(parts["lineage"]) if "lineage" in parts else Lineage(),
            promote=form.promote(),
            digest=form.hex("digest"),
        )
    finally:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body; one that stops coming would keep its place among the uploads for ever."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                chunk = await anext(stream, None)
        except TimeoutError:
            message = f"Nothing of the upload has come for {IDLE_SECONDS:g} seconds; send it again."
            raise APIError(408, message, code="upload_timeout", headers={"connection": "close"}) from None
        if chunk is None:
            return
        yield chunk


def remove_left_over(data_dir: Path) -> None:
    """Remove what uploads left that were killed with their server; the folder belongs to one at a time."""
    shutil.rmtree(data_dir / FOLDER, ignore_errors=True)


def _make_folder(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="upload-", dir=parent))


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise APIError(415, "Send the adapter as multipart/form-data with parts name, config and weights.")
    if b"boundary" not in options:
        raise _malformed("the content type has no boundary")
    return options[b"boundary"]


def _malformed(reason: str) -> APIError:
    return APIError(400, f"The multipart body is malformed: {reason}.", code="invalid_multipart")


class _Form:
    """The parser's callbacks: which part we are in and how much of it there is.

    File names in the body are never looked at: no request field becomes a path.
    """

    def __init__(self, boundary: bytes, max_weights: int) -> None:
        self.parts: dict[str, bytearray] = {}
        self._limits = {
            "name": NAME_BYTES,
            "config": CONFIG_BYTES,
            "weights": max_weights,
            "labels": MAX_LABELS_BYTES,
            "quantization": QUANTIZATION_BYTES,
            "lineage": LINEAGE_BYTES,
            "promote": WORD_BYTES,
            "digest": WORD_BYTES,
            "sha256": WORD_BYTES,
        }
        self._hash = hashlib.sha256()
        self._sizes = dict.fromkeys(self._limits, 0)
        self._part = ""
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None

    @property
    def weights(self) -> bytearray:
        """Bytes of the weights that are not written yet."""
        return self.parts.get("weights", bytearray())

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def write(self, file: BinaryIO) -> None:
        file.write(self.weights)
        self._hash.update(self.weights)
        self.weights.clear()

    def finish(self) -> None:
        """Everything has to be there, up to the closing boundary."""
        if not self._complete:
            raise _malformed("it ends before its closing boundary")
        for part in _REQUIRED:
            if part not in self.parts:
                raise APIError(400, f"Missing required part: '{part}'.", param=part, code="missing_field")

    def name(self) -> str:
        try:
            return self.parts["name"].decode()
        except UnicodeDecodeError:
            raise APIError(400, "name: not UTF-8 text", param="name", code="invalid_name") from None

    def word(self, part: str) -> str | None:
        value = self.parts.get(part)
        return None if value is None else value.decode(errors="replace")

    def hex(self, part: str) -> str | None:
        """A SHA-256, if the part was sent."""
        value = self.word(part)
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            raise APIError(400, f"{part}: must be 64 of 0-9, a-f", param=part)
        return value

    def promote(self) -> Promote:
        value = self.word("promote") or "auto"
        if value not in _PROMOTE:
            raise APIError(400, f"promote: must be one of {', '.join(_PROMOTE)}", param="promote")
        return cast(Promote, value)

    def check_sha256(self) -> None:
        """Whether the weights are those that were sent, if the client said which."""
        stated, found = self.hex("sha256"), self._hash.hexdigest()
        if stated not in (None, found):
            message = f"sha256: the weights that arrived have {found}; send them again"
            raise APIError(400, message, param="sha256", code="checksum_mismatch")

    def _begin(self) -> None:
        self._part, self._disposition = "", b""

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        part = options.get(b"name", b"").decode(errors="replace")[:100]
        if part not in self._limits:
            raise APIError(400, f"Unrecognized part supplied: {part}", param=part, code="unknown_field")
        if part in self.parts:
            raise APIError(400, f"{part}: sent twice", param=part, code="invalid_multipart")
        self._part, self.parts[part] = part, bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        self._sizes[part] += end - start
        if self._sizes[part] > self._limits[part]:
            message = f"{part}: larger than {self._limits[part]} bytes, the most that is taken"
            raise APIError(413, message, param=part, code="body_too_large", headers={"connection": "close"})
        self.parts[part] += data[start:end]

    def _end(self) -> None:
        self._complete = True
