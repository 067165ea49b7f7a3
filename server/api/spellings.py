"""How a request says which model it asks: in `model`, or as clients of SGLang, LoRAX and SageMaker write it.

All of them name adapters of the registry, and none ever becomes a path or a URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from starlette.datastructures import Headers

from server.api.errors import APIError
from server.api.schemas import MAX_KEY, MAX_NAME, ModelFields, invalid

ADAPTER_HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
ROUTING_HEADER = "X-Routing-Key"


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request asks for.

    Attributes:
        model: the base's name, or a reference to an adapter.
        param: the field or header that named it, for errors.
        key: the same one gets the same version of a weighted alias; None: chance decides.
    """

    model: str
    param: str = "model"
    key: str | None = None


def read_asked(headers: Headers, body: ModelFields, base: str) -> Asked:
    """What a request asks for; `base` is the base's name. A 400 if it names two models, or none."""
    key = _routing_key(headers) or body.routing_key
    named = [(param, name) for param, name in _spellings(headers, body, base) if name]
    if not named:
        if not body.model:
            raise APIError(400, "Missing required parameter: 'model'.", param="model", code="missing_field")
        return Asked(body.model, key=key)
    (param, name), *others = named
    for other, also in others:
        if also != name:
            raise invalid(other, f"names `{also}`, but {param} names `{name}`; send one of them")
    return Asked(name, param, key)


def adapter_in(model: str, base: str) -> str:
    """The adapter in SGLang's `base:adapter`; any other `model` as it is."""
    return model.removeprefix(f"{base}:") or model


def _spellings(headers: Headers, body: ModelFields, base: str) -> Iterator[tuple[str, str | None]]:
    """Each place that can name an adapter, and the name there. The base in `model` gives way to others."""
    yield "model", None if body.model == base else adapter_in(body.model, base)
    yield "lora_path", body.lora_path
    yield "adapter_id", body.adapter_id
    for value in headers.getlist(ADAPTER_HEADER):
        if len(value) > MAX_NAME:
            raise invalid(ADAPTER_HEADER, f"at most {MAX_NAME} characters")
        yield ADAPTER_HEADER, value


def _routing_key(headers: Headers) -> str | None:
    key = headers.get(ROUTING_HEADER)
    if key is not None and len(key) > MAX_KEY:
        raise invalid(ROUTING_HEADER, f"at most {MAX_KEY} characters")
    return key
