"""`GET /openapi.json`: the routes as an OpenAPI 3.1 document.

FastAPI knows paths and queries. Handlers read their bodies themselves, so these are named here, and so is
every answer that is not plain JSON with a 200.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import JSONResponse, Response

from server.access.rules import find_rule
from server.api import sglang, vllm
from server.api.aliases import AliasRequest
from server.api.chat_schema import ChatRequest
from server.api.classify import ClassifyRequest
from server.api.completion_schema import CompletionRequest
from server.api.embeddings import EmbeddingRequest
from server.api.fine_tuning.schemas import JobFields
from server.api.keys import KeyRequest
from server.api.lifecycle import CanaryRequest, DeprecateRequest, MoveRequest
from server.api.sagemaker import RegisterRequest
from server.api.tenants import TenantRequest

router = APIRouter()
Object = dict[str, Any]
JSON = "application/json"
TEXT = "text/plain"
FILE = "application/octet-stream"
RESULTS = (FILE, "text/csv", "text/markdown", "image/png", "application/json")

BODIES: Mapping[str, type[BaseModel]] = {
    "POST /v1/chat/completions": ChatRequest,
    "POST /v1/completions": CompletionRequest,
    "POST /v1/embeddings": EmbeddingRequest,
    "POST /v1/classify": ClassifyRequest,
    "POST /v1/token_classify": ClassifyRequest,
    "PUT /v1/adapters/{name}/aliases/{alias}": AliasRequest,
    "POST /v1/adapters/{ref}/promote": MoveRequest,
    "POST /v1/adapters/{name}/rollback": MoveRequest,
    "POST /v1/adapters/{ref}/canary": CanaryRequest,
    "POST /v1/adapters/{ref}/deprecate": DeprecateRequest,
    "POST /v1/load_lora_adapter": vllm.LoadRequest,
    "POST /v1/unload_lora_adapter": vllm.UnloadRequest,
    "POST /load_lora_adapter": sglang.LoadRequest,
    "POST /unload_lora_adapter": sglang.UnloadRequest,
    "POST /adapters": RegisterRequest,
    "POST /v1/fine_tuning/jobs": JobFields,
    "POST /v1/keys": KeyRequest,
    "PUT /v1/tenants/{name}": TenantRequest,
}
"""What handlers parse. Routes with a method that may have a body, and are not here, read none."""
UPLOAD = "POST /v1/adapters"
UPLOADS = {UPLOAD: "Upload", "POST /v1/files": "FileUpload"}
"""Routes that read multipart bodies, and the schemas of these."""
OPTIONAL = {"POST /v1/adapters/{ref}/promote", "POST /v1/adapters/{name}/rollback"}
"""Bodies that may be left out."""

ANSWERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "POST /v1/chat/completions": {"200": (JSON, "text/event-stream")},
    "POST /v1/completions": {"200": (JSON, "text/event-stream")},
    UPLOAD: {"200": (JSON,), "201": (JSON,), "202": (JSON,)},
    "POST /v1/keys": {"201": (JSON,)},
    "GET /metrics": {"200": (TEXT,)},
    "GET /v1/adapters/{ref}/files/{file}": {"200": (JSON, FILE), "206": (JSON, FILE, "multipart/byteranges")},
    "GET /v1/adapters/{ref}/merged": {"200": ("application/x-tar",)},
    "GET /v1/files/{file_id}/content": {"200": RESULTS, "206": (*RESULTS, "multipart/byteranges")},
    "POST /v1/load_lora_adapter": {"200": (TEXT,)},
    "POST /v1/unload_lora_adapter": {"200": (TEXT,)},
    "POST /adapters": {"200": (TEXT,)},
    "DELETE /adapters/{name}": {"200": (TEXT,)},
}
"""By route, status and types of what is answered."""
OWN_ERRORS = {"GET /health", "POST /load_lora_adapter", "POST /unload_lora_adapter"}
OWN_ERRORS |= {"POST /load_lora_adapter_from_tensors"}
"""Routes whose refusals are not in OpenAI's shape."""

_TEXT_PART = {"type": "string"}
_UPLOAD_PARTS: Object = {
    "type": "object",
    "required": ["name", "config", "weights"],
    "additionalProperties": False,
    "properties": {
        "name": _TEXT_PART,
        "config": _TEXT_PART | {"description": "adapter_config.json"},
        "weights": _TEXT_PART | {"format": "binary", "description": "adapter_model.safetensors"},
        "labels": _TEXT_PART | {"description": "JSON: a list of the head's labels, or id2label"},
        "quantization": _TEXT_PART | {"description": "what the base was quantised to in training"},
        "lineage": _TEXT_PART | {"description": "JSON: where the adapter comes from"},
        "promote": _TEXT_PART | {"enum": ["auto", "yes", "no"]},
        "digest": _TEXT_PART | {"description": "of the content, as the client expects it"},
        "sha256": _TEXT_PART | {"description": "of the part weights"},
    },
}
_FILE_PARTS: Object = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {
        "file": _TEXT_PART | {"format": "binary", "description": "JSON lines to train on"},
        "purpose": _TEXT_PART | {"enum": ["fine-tune"]},
        "expires_after[anchor]": _TEXT_PART | {"enum": ["created_at"]},
        "expires_after[seconds]": _TEXT_PART | {"pattern": "^[0-9]{4,7}$", "description": "3600 to 2592000"},
    },
}
_ERROR: Object = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_SCHEMES: Object = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


@router.get("/openapi.json")
async def get_document(request: Request) -> Response:
    """This document."""
    app: FastAPI = request.app
    if app.openapi_schema is None:
        app.openapi_schema = describe(app)
    return JSONResponse(app.openapi_schema)


def describe(app: FastAPI) -> Object:
    """The document of all routes of `app`."""
    document: Object = get_openapi(title=app.title, version="1", routes=app.routes)
    models = sorted(set(BODIES.values()), key=lambda model: (model.__name__, model.__module__))
    references, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas = {**definitions["$defs"], "Error": _ERROR, "Upload": _UPLOAD_PARTS, "FileUpload": _FILE_PARTS}
    document["components"] = {"schemas": schemas, "securitySchemes": _SCHEMES}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            route = f"{method.upper()} {path}"
            body = _upload(UPLOADS[route]) if route in UPLOADS else None
            if route in BODIES:
                body = _body(references[BODIES[route], "validation"], route not in OPTIONAL)
            _complete(operation, route, body)
    return document


def _complete(operation: Object, route: str, body: Object | None) -> None:
    """Add to FastAPI's `operation` what is in the tables."""
    if body is not None:
        operation["requestBody"] = body
    method, _, path = route.partition(" ")
    rule = find_rule(method, path)
    operation["security"] = [] if rule == "public" else [{}, *({name: []} for name in _SCHEMES)]
    operation["x-scope"] = rule
    answers = ANSWERS.get(route, {"200": (JSON,)})
    responses: Object = {status: _answer("Done.", *types) for status, types in answers.items()}
    refusal = {} if route in OWN_ERRORS else {"$ref": "#/components/schemas/Error"}
    responses["4XX"] = _answer("Refused; nothing was changed.", JSON, schema=refusal)
    responses["503"] = _answer("Not now, such as while the server drains.", JSON, schema=refusal)
    operation["responses"] = responses


def _body(schema: Any, required: bool) -> Object:
    return {"required": required, "content": {JSON: {"schema": schema}}}


def _upload(name: str) -> Object:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _answer(text: str, *types: str, schema: Object | None = None) -> Object:
    shapes = {JSON: schema if schema is not None else {"type": "object"}}
    return {"description": text, "content": {kind: {"schema": shapes.get(kind, {})} for kind in types}}
