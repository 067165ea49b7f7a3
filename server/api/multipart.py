"""A multipart body, part by part while it comes: each known, bounded, and one of them straight to disk."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from server.api.errors import APIError
from server.settings import MIB

WRITE_BYTES = MIB
"""What goes to disk gathers in memory up to this size before a thread writes it."""
IDLE_SECONDS = 60.0
_MAX_FILENAME = 1024


async def receive(
    request: Request, limits: Mapping[str, int], streamed: str, target: Path, wanted: str
) -> Form:
    """Read the body of `request`; the part `streamed` goes to the file `target`.

    Args:
        limits: the most bytes of each part that may be there.
        wanted: what to send, for the error of another kind of body.
    """
    boundary = _boundary(request, wanted)
    with await run_in_threadpool(target.open, "wb") as file:
        form = Form(boundary, limits, streamed)
        async for chunk in _chunks(request):
            form.feed(chunk)
            if len(form.parts.get(streamed, b"")) >= WRITE_BYTES:
                await run_in_threadpool(form.write, file)
        form.finish()
        await run_in_threadpool(form.write, file)
    return form


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


def _boundary(request: Request, wanted: str) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise APIError(415, f"Send {wanted}.")
    if b"boundary" not in options:
        raise _malformed("the content type has no boundary")
    return options[b"boundary"]


def _malformed(reason: str) -> APIError:
    return APIError(400, f"The multipart body is malformed: {reason}.", code="invalid_multipart")


class Form:
    """The parser's callbacks: which part we are in and how much of it there is.

    The name that a client gives its file is text that is told again, and never a path.

    Attributes:
        parts: what has come and was not written to disk.
        size: bytes of the streamed part.
        filename: of the streamed part; None: it has none.
    """

    def __init__(self, boundary: bytes, limits: Mapping[str, int], streamed: str) -> None:
        self.parts: dict[str, bytearray] = {}
        self.filename: str | None = None
        self._limits, self._streamed = limits, streamed
        self._hash = hashlib.sha256()
        self._sizes = dict.fromkeys(limits, 0)
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
    def size(self) -> int:
        return self._sizes[self._streamed]

    @property
    def sha256(self) -> str:
        """Of the streamed part as far as it is written, hex."""
        return self._hash.hexdigest()

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(str(error)) from None

    def write(self, file: BinaryIO) -> None:
        waiting = self.parts.get(self._streamed, bytearray())
        file.write(waiting)
        self._hash.update(waiting)
        waiting.clear()

    def finish(self) -> None:
        """Everything has come, up to the closing boundary."""
        if not self._complete:
            raise _malformed("it ends before its closing boundary")

    def require(self, parts: Collection[str]) -> None:
        """A 400 for the first of `parts` that was not sent."""
        for part in parts:
            if part not in self.parts:
                raise APIError(400, f"Missing required part: '{part}'.", param=part, code="missing_field")

    def word(self, part: str) -> str | None:
        """A short part as text; None: it was not sent."""
        value = self.parts.get(part)
        return None if value is None else value.decode(errors="replace")

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
        if part == self._streamed and b"filename" in options:
            self.filename = options[b"filename"].decode(errors="replace")[:_MAX_FILENAME]
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
