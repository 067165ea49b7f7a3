"""The client of the HTTP API that every command but the offline ones goes through.

Errors of the connection and of the server become `Failed` with the exit code of their kind. Calls that may
be repeated without harm are repeated when the connection breaks or a gateway says that nobody is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import RawIOBase
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from server.cli.exits import Exit, Failed

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]
Readable = IO[bytes] | RawIOBase
Param = str | int | float | bool | None
"""Of a query; None: leave it out."""
Done = TypeVar("Done")
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
WORK_SECONDS = 1800.0
"""For what the server works on before it answers: an adapter's proof, a merged model, a drain."""
PAUSES = (0.2, 0.8)
"""Seconds before each further try of a call that may be repeated."""
PAGE = 1000
_EXITS = {
    401: Exit.NOT_ALLOWED,
    403: Exit.NOT_ALLOWED,
    404: Exit.NOT_FOUND,
    409: Exit.CONFLICT,
    429: Exit.TRY_LATER,
    502: Exit.TRY_LATER,
    503: Exit.TRY_LATER,
    504: Exit.TRY_LATER,
}


def path_of(*parts: object) -> str:
    """`/v1/` and the parts, quoted; `/` and `@` of a reference stay as they are."""
    return "/v1/" + "/".join(quote(str(part), safe="/@") for part in parts)


def exact(version: Json) -> str:
    """A reference to this version that means the same whoever asks: a bare name is the caller's own."""
    return f"{version['tenant']}/{version['name']}@{version['version']}"


class Client:
    """One server, asked with one key. To be closed.

    Args:
        server: its URL, with or without a path before `/v1`.
        key: sent as bearer token; None: none.
    """

    def __init__(self, server: str, key: str | None) -> None:
        import httpx  # takes a fifth of a second

        self.server, self._key = server, key
        headers = {"user-agent": "multilora-cli"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            self._http = httpx.Client(base_url=server, headers=headers, timeout=timeout)
        except httpx.InvalidURL as error:
            raise Failed(f"--server: {error}", Exit.USAGE) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: Param) -> Json:
        """The JSON object at `path`; tried again when that may help."""
        return self._patiently(lambda: self._call("GET", path, params))

    def post(self, path: str, body: Json | None = None, **params: Param) -> Json:
        return self._call("POST", path, params, body)

    def put(self, path: str, body: Json | None = None) -> Json:
        return self._call("PUT", path, {}, body)

    def delete(self, path: str, **params: Param) -> Json:
        return self._call("DELETE", path, params, seconds=WORK_SECONDS)

    def pages(self, path: str, **params: Param) -> list[Json]:
        """All objects of a list that comes in pages."""
        found: list[Json] = []
        after: str | None = None
        while True:
            page = self.get(path, limit=PAGE, after=after, **params)
            found += page["data"]
            if not page.get("has_more") or page.get("last_id") == after:
                return found
            after = page["last_id"]

    def upload(
        self,
        path: str,
        parts: Json,
        files: Sequence[tuple[str, Readable]],
        filename: str | None = None,
        **params: Param,
    ) -> tuple[int, Json]:
        """POST parts of text and files, which are sent piece by piece as they are read.

        Args:
            filename: what the server is told of the files' names; None: the names of the parts.

        Returns:
            The status, which tells how it went, and the JSON object.
        """
        named = [(name, (filename or name, file, "application/octet-stream")) for name, file in files]
        with self._sent("POST", path, params, data=parts, files=named, seconds=WORK_SECONDS) as answer:
            return answer.status_code, self._object(answer)

    def download(self, path: str, write: Callable[[Iterator[bytes], Mapping[str, str]], Done]) -> Done:
        """Hand the body of `path` in pieces, and the headers, to `write`; again if it breaks."""

        def attempt() -> Done:
            with self._sent("GET", path, {}, seconds=WORK_SECONDS) as answer:
                return write(answer.iter_bytes(1024**2), answer.headers)

        return self._patiently(attempt)

    def _patiently(self, work: Callable[[], Done]) -> Done:
        for pause in PAUSES:
            try:
                return work()
            except Failed as error:
                if not error.passing:
                    raise
            time.sleep(pause)
        return work()

    def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, Param],
        body: Json | None = None,
        **more: Any,
    ) -> Json:
        if body is not None:
            more["json"] = body
        with self._sent(method, path, params, **more) as answer:
            return self._object(answer)

    def _object(self, answer: httpx.Response) -> Json:
        try:
            found = json.loads(answer.read() or b"{}")
        except ValueError:
            found = None
        if not isinstance(found, dict) or "object" not in found:  # each answer says what it is
            raise Failed(f"{self.server} answered with something else than asked for; is it Multilora?")
        return found

    @contextmanager
    def _sent(
        self,
        method: str,
        path: str,
        params: Mapping[str, Param],
        *,
        seconds: float | None = None,
        **more: Any,
    ) -> Iterator[httpx.Response]:
        """The answer, its body unread; an answer that tells of an error is raised."""
        import httpx

        if seconds is not None:
            more["timeout"] = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        given = {name: value for name, value in params.items() if value is not None}
        try:
            with self._http.stream(method, path, params=given, **more) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refused(method, path, answer)
                yield answer
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failed(f"can't reach {self.server}: {_reason(error)}", Exit.UNREACHABLE) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            unknown = "" if method == "GET" else "; whether it was done is not known"
            message = f"the connection to {self.server} broke: {_reason(error)}{unknown}"
            waited = isinstance(error, httpx.TimeoutException)
            raise Failed(message, Exit.UNREACHABLE, passing=not waited) from None
        except (httpx.InvalidURL, httpx.StreamError) as error:
            raise Failed(f"{method} {path}: {_reason(error)}") from None

    def _refused(self, method: str, path: str, answer: httpx.Response) -> Failed:
        try:
            error = answer.json()["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, KeyError, TypeError, AttributeError):
            message, code = f"{self.server} answered {method} {path} with {answer.status_code}", None
        exit_code = _EXITS.get(answer.status_code, Exit.FAILED)
        if code == "unknown_url":  # not the same as an adapter that is not there
            exit_code, message = Exit.FAILED, f"{self.server} has no {method} {path}: is it an older release?"
        if answer.status_code == 401 and self._key is None:
            message += " Set MULTILORA_API_KEY, or give --key."
        again = answer.headers.get("retry-after", "")
        if exit_code is Exit.TRY_LATER and again.isdecimal():
            message += f" (try again in {again} s)"
        return Failed(message, exit_code, passing=answer.status_code in (502, 503, 504) and not again)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
