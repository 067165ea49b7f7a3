"""From the bytes of a JSON body to a checked request."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from server.api.errors import APIError, from_validation

Model = TypeVar("Model", bound=BaseModel)
SMALL = 64 * 1024
"""Bodies up to this size are parsed in place: the thread would cost more than the work."""


async def read_json(request: Request, model: type[Model]) -> Model:
    """The body as `model`, or a 400 that names the field; the size is bounded by `BodyLimit` beneath.

    Only `application/json` is taken: a browser sends that to another origin only after asking, so a web page
    can't drive a server on its reader's own machine.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise APIError(415, "Send the body as JSON with the header Content-Type: application/json.")
    raw = await request.body()
    if len(raw) <= SMALL:
        return parse_json(raw, model)
    return await run_in_threadpool(parse_json, raw, model)


def parse_json(raw: bytes, model: type[Model]) -> Model:
    """Strict: `"5"` is no number, `true` is no integer, and NaN and Infinity are no JSON."""
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise APIError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise APIError(400, "The body must be a JSON object.", code="invalid_json")
    try:
        # From the bytes again: only in JSON mode does strict validation take objects for models.
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise from_validation(error) from None
