"""The pages agree with the code and with one another."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from adapters.checkpoint.config_fields import APPLIED, NO_EFFECT, REFUSED
from server.api import sagemaker, sglang
from server.api.aliases import AliasRequest
from server.api.app import create_app
from server.api.body import parse_json
from server.api.chat_schema import ChatRequest
from server.api.classify import ClassifyRequest
from server.api.completion_schema import CompletionRequest
from server.api.embeddings import EmbeddingRequest
from server.api.errors import APIError
from server.api.keys import KeyRequest
from server.api.lifecycle import CanaryRequest, DeprecateRequest
from server.api.tenants import TenantRequest
from server.api.vllm import LoadRequest, UnloadRequest
from server.cli.main import build_parser
from server.cli.reference import PAGES as COMMAND_PAGES
from server.cli.reference import TABLES, commands_help, fill
from server.settings import Settings, flags
from tests.pages import PAGES, ROOT, Curl, blocks, commands, curls, links, name
from tests.server.api.fakes import make_context

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/classify": ClassifyRequest,
    "/v1/token_classify": ClassifyRequest,
    "/v1/load_lora_adapter": LoadRequest,
    "/v1/unload_lora_adapter": UnloadRequest,
    "/load_lora_adapter": sglang.LoadRequest,
    "/unload_lora_adapter": sglang.UnloadRequest,
    "/adapters": sagemaker.RegisterRequest,
    "/v1/keys": KeyRequest,
    "/v1/tenants/acme": TenantRequest,
    "/v1/adapters/shop/aliases/prod": AliasRequest,
    "/v1/adapters/shop@4/canary": CanaryRequest,
    "/v1/adapters/shop@1/deprecate": DeprecateRequest,
}
OPERATIONS = ROOT / "docs" / "operations.md"
ADAPTERS = ROOT / "docs" / "adapters.md"
ERRORS = {"InvalidAdapter", "AdapterTooLarge", "InvalidName", "AdapterConflict", "AdapterError", "_fault"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page.read_text()):
        assert (page.parent / target.partition("#")[0]).exists(), target


def test_generated_tables_are_not_stale() -> None:
    text = OPERATIONS.read_text()
    assert fill(text) == text, "run: python -m server.cli.reference docs/operations.md"


@pytest.mark.parametrize("page", COMMAND_PAGES)
def test_generated_help_is_not_stale(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert fill(text, COMMAND_PAGES[page]) == text, f"run: python -m server.cli.reference docs/{page}"


def test_every_setting_is_in_the_operators_guide() -> None:
    text = OPERATIONS.read_text()
    for setting in Settings.model_fields:
        assert (f"`--{setting.replace('_', '-')}`" in text) is (setting in flags())
        assert f"`MULTILORA_{setting.upper()}`" in text


def test_a_page_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="settings:begin"):
        fill("no markers")
    assert list(TABLES) == ["settings", "metrics"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_flags_that_pages_name_exist(page: Path) -> None:
    known = set(re.findall(r"--[a-z-]+", _help("serve") + commands_help()))
    for flag in re.findall(r"`multilora [^`]*`", page.read_text()):
        assert set(re.findall(r"--[a-z-]+", flag)) <= known, flag
    for words in commands(page.read_text()):
        if words[0].endswith("multilora"):
            assert {word for word in words if word.startswith("--")} <= known, words


def _help(verb: str) -> str:
    parser = build_parser()
    verbs = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    return str(verbs[verb].format_help())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_that_pages_run_exist(page: Path) -> None:
    for module in re.findall(r"python -m ([a-z_.]+[a-z_])", page.read_text()):
        assert importlib.util.find_spec(module) is not None, module


CURLS = [(name(page), curl) for page in PAGES for curl in curls(page.read_text())]


@pytest.mark.parametrize(("page", "curl"), CURLS, ids=[f"{page} {c.method} {c.path}" for page, c in CURLS])
def test_curl_commands_fit_the_api(page: str, curl: Curl, tmp_path: Path) -> None:
    client = TestClient(create_app(make_context(tmp_path)), raise_server_exceptions=False)
    answer = client.request(curl.method, curl.path)

    assert answer.status_code != 405
    assert answer.status_code != 404 or answer.json()["error"]["code"] != "unknown_url"
    if curl.body is not None:
        try:
            parse_json(curl.body.encode(), BODIES[curl.path])
        except APIError as error:
            pytest.fail(f"{page}: {error.message}")


@pytest.mark.parametrize("path", sorted(BODIES))
def test_every_route_with_a_body_is_shown_with_one(path: str) -> None:
    assert path in {curl.path for _, curl in CURLS}


def _flat(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def test_every_field_of_a_config_is_in_the_docs() -> None:
    text = ADAPTERS.read_text()
    for field in (*APPLIED, *NO_EFFECT, *REFUSED):
        assert f"`{field}`" in text, field


def _messages() -> Iterator[str]:
    """The longest fixed part of every error that an adapter can be refused with."""
    for path in sorted([*(ROOT / "adapters").glob("*.py"), *(ROOT / "adapters").glob("[!.]*/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in ERRORS:
                parts = [
                    part.value
                    for part in ast.walk(node.args[0])
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
                fixed = max(parts, key=len, default="").strip(" :;")
                if len(fixed) > 7:
                    yield fixed


def test_every_check_of_an_adapter_is_in_the_docs() -> None:
    pages = _flat(ADAPTERS.read_text()) + _flat(OPERATIONS.read_text())
    messages = set(_messages())

    assert len(messages) > 40
    assert sorted(message for message in messages if _flat(message) not in pages) == []


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/structure.md"])
def test_files_that_pages_name_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    rooms = ("checkpoint", "batch", "registry", "blobs")
    folders = (
        "",
        "server/api/",
        "server/engine/",
        "server/",
        "adapters/",
        *(f"adapters/{room}/" for room in rooms),
    )
    for path in re.findall(r"`([a-z_/]+\.(?:py|md|yml))`", text):
        assert any((ROOT / folder / path).is_file() for folder in folders), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_pages_is_python(page: Path) -> None:
    for block in blocks(page.read_text(), "python"):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_of_readable_length(page: Path) -> None:
    prose = (line for line in page.read_text().splitlines() if not line.startswith(("|", "    ")))
    assert [line for line in prose if len(line) > 160] == []
