"""JSON bodies: what is not JSON, or not quite."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from server.api.body import SMALL

PATH = "/v1/completions"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b'"text"',
        b'{"model": "tiny", "prompt": "hi", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "hi", "temperature": Infinity}',
        b'{"model": "tiny", "prompt": "hi", "metadata": {"a": -Infinity}}',
        b'{"model": "tiny", "prompt": ' + b"[" * 100_000 + b"}",
        b'{"model": "tiny", "prompt": "\\ud800"}',
    ],
    ids=lambda body: str(body[:50]),
)
def test_a_body_that_is_no_json_object_is_a_400(client: TestClient, body: bytes) -> None:
    answer = client.post(PATH, content=body, headers=JSON)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_content_types_are_refused(client: TestClient, kind: str) -> None:
    answer = client.post(PATH, content=b'{"model": "tiny", "prompt": "hi"}', headers={"content-type": kind})

    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


def test_a_content_type_may_have_parameters(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}

    assert client.post(PATH, content=b'{"model": "tiny", "prompt": "hi"}', headers=headers).status_code == 200


def test_large_bodies_are_parsed_too(client: TestClient) -> None:
    body = b'{"model": "tiny", "prompt": "hi"' + b" " * SMALL + b"}"
    answer = client.post(PATH, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 200
