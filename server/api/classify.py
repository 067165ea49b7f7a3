"""`POST /v1/classify` and `POST /v1/token_classify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from server.api.auth import CurrentCaller
from server.api.body import read_json
from server.api.context import OpenContext
from server.api.inputs import InputFields, read_inputs
from server.api.lease import Lease, leased
from server.api.pooling import respond
from server.api.prompts import Prompt
from server.api.streaming import Body
from server.api.tasks import CLASSIFY, TOKEN_CLASSIFY, check_route
from server.engine.request import PoolingOutput

router = APIRouter()
Activation = Literal["softmax", "sigmoid"]


class ClassifyRequest(InputFields):
    """`activation`: what makes probabilities of the logits; softmax where there are several labels."""

    activation: Activation | None = None


@router.post(CLASSIFY)
async def classify(request: Request, context: OpenContext, caller: CurrentCaller) -> Response:
    """The class of each input."""
    body = await read_json(request, ClassifyRequest)
    with leased(request, context, caller, body) as lease:
        check_route(lease, CLASSIFY)
        prompts = await read_inputs(context, body)

        def render(outputs: Sequence[PoolingOutput]) -> list[Body]:
            return [text_entry(lease, body, index, output) for index, output in enumerate(outputs)]

        return await respond(request, lease, prompts, "classify", render)


@router.post(TOKEN_CLASSIFY)
async def token_classify(request: Request, context: OpenContext, caller: CurrentCaller) -> Response:
    """The class of each token of each input."""
    body = await read_json(request, ClassifyRequest)
    with leased(request, context, caller, body) as lease:
        check_route(lease, TOKEN_CLASSIFY)
        prompts = await read_inputs(context, body, offsets=True)

        def render(outputs: Sequence[PoolingOutput]) -> list[Body]:
            return [
                tokens_entry(lease, body, index, prompt, output)
                for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
            ]

        return await respond(request, lease, prompts, "token_classify", render)


def text_entry(lease: Lease, body: ClassifyRequest, index: int, output: PoolingOutput) -> Body:
    """vLLM's fields, and everything by label name."""
    logits = output.vectors[0]
    (probs,) = probabilities(output.vectors, body.activation).tolist()
    names = label_names(lease, len(logits))
    return {
        "index": index,
        "label": names[int(np.argmax(logits))],
        "probs": probs,
        "num_classes": len(names),
        "scores": dict(zip(names, probs, strict=True)),
        "logits": dict(zip(names, logits, strict=True)),
    }


def tokens_entry(
    lease: Lease, body: ClassifyRequest, index: int, prompt: Prompt, output: PoolingOutput
) -> Body:
    """The likeliest label of each token, and where the token stands if the input was a text."""
    probs = probabilities(output.vectors, body.activation)
    names = label_names(lease, probs.shape[1])
    best = probs.argmax(1).tolist()
    offsets = prompt.offsets or [(None, None)] * len(best)
    return {
        "index": index,
        "tokens": [
            {
                "token": lease.context.tokens.text(token_id),
                "start": start,
                "end": end,
                "label": names[label],
                "score": float(probs[place, label]),
            }
            for place, (token_id, (start, end), label) in enumerate(
                zip(prompt.token_ids, offsets, best, strict=True)
            )
        ],
        "num_classes": len(names),
    }


def probabilities(logits: Sequence[Sequence[float]], activation: Activation | None) -> NDArray[np.float64]:
    """`(rows, labels)`. A single label has a sigmoid unless told otherwise: its softmax would be 1."""
    values = np.array(logits, np.float64)
    if activation == "sigmoid" or (activation is None and values.shape[1] == 1):
        return np.asarray(0.5 * (1 + np.tanh(values / 2)))  # which does not overflow
    weights = np.exp(values - values.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def label_names(lease: Lease, count: int) -> Sequence[str]:
    """The model's own, or as transformers calls labels without a name."""
    return lease.labels if len(lease.labels) == count else [f"LABEL_{index}" for index in range(count)]
