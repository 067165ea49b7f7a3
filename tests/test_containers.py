"""The container files name only variables, ports, paths, files and commands that exist."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
import yaml

from server.cli.main import build_parser
from server.settings import Settings
from tests.pages import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVER: dict[str, Any] = COMPOSE["services"]["multilora"]
SETTINGS = {f"MULTILORA_{name.upper()}" for name in Settings.model_fields}


def environment() -> dict[str, str]:
    """What the image sets."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    return dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())


def test_every_variable_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (DOCKERFILE, (ROOT / "docker-compose.yml").read_text()):
        assert set(re.findall(r"MULTILORA_[A-Z_]+", text)) <= SETTINGS
    for variable, value in {**environment(), **SERVER["environment"]}.items():
        default = re.fullmatch(r"\$\{\w+:-(.*)\}", value)
        monkeypatch.setenv(variable, default[1] if default else value)
    settings = Settings()
    assert settings.host == "0.0.0.0"
    assert str(settings.data_dir).startswith("/data/")
    assert settings.model is None


def test_variables_pass_through_under_their_own_names() -> None:
    for variable, value in SERVER["environment"].items():
        assert value.startswith(f"${{{variable}:-"), variable


def test_the_port_is_one_and_the_same() -> None:
    port = environment()["MULTILORA_PORT"]
    assert f"EXPOSE {port}" in DOCKERFILE
    assert SERVER["ports"] == [f"127.0.0.1:{port}:{port}"]
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (scrape,) = prometheus["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"multilora:{port}"]}]
    assert scrape["metrics_path"] == "/metrics"


def test_every_port_is_published_on_this_machine_only() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_paths_are_mounted_and_files_exist() -> None:
    volumes = {entry.split(":")[1]: entry.split(":")[0] for entry in SERVER["volumes"]}
    assert volumes == {"/data": "data"}
    assert "VOLUME /data" in DOCKERFILE
    for service in COMPOSE["services"].values():
        for entry in service["volumes"]:
            source = entry.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), source
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in (ROOT / ".dockerignore").read_text().split()


def test_the_commands_exist() -> None:
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    (command,) = re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)
    assert json.loads(entrypoint) == ["multilora"]
    for arguments in (json.loads(command), SERVER["command"]):
        build_parser().parse_args(arguments)


def test_the_health_check_is_python_and_asks_health() -> None:
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (.*)$", DOCKERFILE, re.MULTILINE)
    python, option, code = json.loads(check)
    assert (python, option) == ("python", "-c")
    ast.parse(code)
    assert "/health" in code


def test_the_server_has_no_rights_that_it_does_not_need() -> None:
    assert DOCKERFILE.index("\nUSER multilora\n") < DOCKERFILE.index("\nENTRYPOINT")
    assert SERVER["cap_drop"] == ["ALL"]
    assert SERVER["read_only"] is True


def test_the_drain_ends_before_patience_does() -> None:
    drain = float(SERVER["environment"]["MULTILORA_DRAIN_SECONDS"].partition(":-")[2].rstrip("}"))
    assert drain < int(SERVER["stop_grace_period"].removesuffix("s"))
    assert SERVER["init"] is True


def test_build_arguments_are_declared() -> None:
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert set(SERVER["build"]["args"]) <= declared
