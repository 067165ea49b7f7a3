"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import Field
from starlette.responses import Response

from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.context import OpenContext
from server.api.inputs import InputFields, read_inputs
from server.api.lease import leased
from server.api.pooling import respond
from server.api.schemas import invalid
from server.api.streaming import Body
from server.api.tasks import EMBEDDINGS, check_route
from server.engine.request import PoolingOutput

router = APIRouter()


class EmbeddingRequest(InputFields):
    """OpenAI's fields, and how hidden states become one vector."""

    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    pooling: Literal["last", "mean", "cls"] | None = None
    normalize: bool | None = None


@router.post(EMBEDDINGS)
async def embeddings(request: Request, context: OpenContext, caller: CurrentCaller) -> Response:
    """One vector for each input."""
    body = await read_json(request, EmbeddingRequest)
    with leased(request, context, caller, body) as lease:
        check_route(lease, EMBEDDINGS)
        prompts = await read_inputs(context, body)

        def render(outputs: Sequence[PoolingOutput]) -> list[Body]:
            return [entry(body, index, output) for index, output in enumerate(outputs)]

        return await respond(request, lease, prompts, "embed", render, pooling=body.pooling)


def entry(body: EmbeddingRequest, index: int, output: PoolingOutput) -> Body:
    """One vector, shortened, normalised and encoded as `body` asks."""
    vector = np.array(output.vectors[0], np.float32)
    if body.dimensions is not None and body.dimensions > len(vector):
        raise invalid("dimensions", f"at most {len(vector)}, the width of this model's embeddings")
    vector = vector[: body.dimensions]
    if body.normalize is not False:
        vector = vector / max(float(np.linalg.norm(vector)), float(np.finfo(np.float32).tiny))
    return {"object": "embedding", "index": index, "embedding": encoded(vector, body.encoding_format)}


def encoded(vector: NDArray[np.float32], encoding: str | None) -> str | list[float]:
    """Numbers, or in base64 the little-endian bytes of float32, which OpenAI's clients ask for."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
