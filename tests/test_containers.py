"""The container files name only variables, ports, paths, files, extras and commands that exist."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from starlette.routing import Route

from server.access.rules import RULES
from server.api import health
from server.cli.main import build_parser
from server.settings import Settings
from tests.pages import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVER = SERVICES["multilora"]
GPU: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "gpu.yml").read_text())
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
EXAMPLE = (ROOT / ".env.example").read_text()
SETTINGS = {f"MULTILORA_{name.upper()}" for name in Settings.model_fields}
OWN = [SERVICES[name] for name in ("multilora", "bucket")]
"""The services of the image that is built here."""
REQUIRED = {"MULTILORA_ADMIN_KEY", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
MADE_BY_THE_OPERATOR = {"./deploy/metrics.key"}
GIVEN = dict.fromkeys(REQUIRED, "0123456789abcdef")
"""What an operator sets."""


def image_environment() -> dict[str, str]:
    """What the image sets."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    return dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())


def filled(text: str) -> str:
    """`text` as compose fills its variables in, from `GIVEN` alone."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        assert kind in (":-", ":?"), f"{name} has neither a default nor a message"
        return GIVEN[name] if kind == ":?" else rest

    return re.sub(r"\$\{(\w+)(:.)?([^}]*)\}", value, text)


def variables(text: str) -> dict[str, str]:
    """Each variable that `text` takes from the environment, with `:-` or `:?`."""
    return dict(re.findall(r"\$\{(\w+)(:.)", text))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the server of the compose file has."""
    for variable, value in {**image_environment(), **SERVER["environment"]}.items():
        monkeypatch.setenv(variable, filled(value))
    return Settings()


def test_every_variable_is_a_setting(settings: Settings) -> None:
    for text in (DOCKERFILE, COMPOSE_TEXT, EXAMPLE):
        assert set(re.findall(r"MULTILORA_[A-Z_]+", text)) <= SETTINGS
    assert settings.host == "0.0.0.0"
    assert str(settings.data_dir).startswith("/data/")
    assert settings.model is None


def test_settings_pass_through_under_their_own_names() -> None:
    for variable, value in SERVER["environment"].items():
        taken = re.fullmatch(r"\$\{(\w+):.*\}", value)
        if variable.startswith("MULTILORA_") and taken:
            assert taken[1] == variable


def test_keys_and_passwords_come_from_the_environment_and_must_be_set() -> None:
    kinds = variables(COMPOSE_TEXT)
    assert {name for name, kind in kinds.items() if kind == ":?"} == REQUIRED
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"KEY|PASSWORD|SECRET", name):
                assert re.fullmatch(r"\$\{\w+:\?.+\}", value), name


def test_the_example_of_an_environment_names_each_variable_and_sets_no_secret() -> None:
    lines = dict(re.findall(r"^#?([A-Z_0-9]+)=(.*)$", EXAMPLE, re.MULTILINE))
    kinds = variables(COMPOSE_TEXT)
    assert lines.keys() == kinds.keys() - {"TORCH_INDEX"}
    assert set(re.findall(r"^([A-Z_0-9]+)=$", EXAMPLE, re.MULTILINE)) == REQUIRED
    for name, value in lines.items():
        if name not in REQUIRED:
            assert f"${{{name}:-{value}}}" in COMPOSE_TEXT
    assert {"/.env", "/deploy/metrics.key"} <= set((ROOT / ".gitignore").read_text().split())


def test_images_are_pinned() -> None:
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    for image in (base, *(service["image"] for service in SERVICES.values())):
        name, _, tag = image.partition(":")
        assert name, image
        assert re.search(r"\d+\.\d+", tag), image
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for service in OWN:
        assert service["image"] == f"multilora:{version}"


def test_the_port_is_one_and_the_same() -> None:
    port = image_environment()["MULTILORA_PORT"]
    assert f"EXPOSE {port}" in DOCKERFILE
    assert SERVER["ports"] == [f"127.0.0.1:{port}:{port}"]
    (scrape,) = PROMETHEUS["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"multilora:{port}"]}]


def test_every_port_is_published_on_this_machine_only() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_database_and_the_store_are_those_of_the_file(settings: Settings) -> None:
    postgres, s3 = SERVICES["postgres"], SERVICES["s3"]
    made = {name: filled(value) for name, value in postgres["environment"].items()}
    url = f"postgresql://{made['POSTGRES_USER']}:{made['POSTGRES_PASSWORD']}@postgres:5432/{made['POSTGRES_DB']}"
    assert settings.database_url == url
    assert {"multilora"} == {made["POSTGRES_USER"], made["POSTGRES_DB"]} <= {*postgres["healthcheck"]["test"]}

    (port,) = (re.fullmatch(r"-s3\.port=(\d+)", word) for word in s3["command"] if "s3.port" in word)
    assert port
    for service in OWN:
        assert service["environment"]["AWS_ENDPOINT_URL_S3"] == f"http://s3:{port[1]}"
        assert s3["environment"].items() <= service["environment"].items()
    assert f":{port[1]}/" in s3["healthcheck"]["test"][-1]

    (code,) = SERVICES["bucket"]["command"]
    ast.parse(code)
    bucket = settings.blob_url and re.match("s3://([a-z-]+)", settings.blob_url)
    assert bucket
    assert f"mkdir('{bucket[1]}')" in code


def test_services_wait_for_what_they_need() -> None:
    assert {name: need["condition"] for name, need in SERVER["depends_on"].items()} == {
        "postgres": "service_healthy",
        "bucket": "service_completed_successfully",
    }
    for service in SERVICES.values():
        for name, need in service.get("depends_on", {}).items():
            # The server's check is in its image.
            if need["condition"] == "service_healthy" and name != "multilora":
                assert "healthcheck" in SERVICES[name]


def test_prometheus_asks_a_route_with_a_key_that_is_there() -> None:
    (scrape,) = PROMETHEUS["scrape_configs"]
    assert scrape["job_name"] == "multilora"
    assert RULES[f"GET {scrape['metrics_path']}"] == "metrics"
    folder, _, secret = scrape["authorization"]["credentials_file"].rpartition("/")
    assert folder == "/run/secrets"
    service = SERVICES["prometheus"]
    assert service["secrets"] == [secret]
    assert COMPOSE["secrets"][secret]["file"] in MADE_BY_THE_OPERATOR
    (config,) = service["configs"]
    assert COMPOSE["configs"][config["source"]]["file"] == "./deploy/prometheus.yml"
    assert SERVER["environment"]["MULTILORA_ALLOW_HOST"] == "${MULTILORA_ALLOW_HOST:-multilora}"


def test_paths_are_mounted_and_files_exist() -> None:
    assert SERVER["volumes"] == ["data:/data"]
    assert "VOLUME /data" in DOCKERFILE
    for name in ("MULTILORA_DATA_DIR", "XDG_CACHE_HOME", "HF_HOME"):  # nothing else can be written
        assert image_environment()[name].startswith("/data/")
    used = {entry.split(":")[0] for service in SERVICES.values() for entry in service.get("volumes", [])}
    assert used == COMPOSE["volumes"].keys()
    for kind in ("configs", "secrets"):
        for source in COMPOSE[kind].values():
            assert source["file"] in MADE_BY_THE_OPERATOR or (ROOT / source["file"]).is_file()
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
    keys = re.search(r"multilora (keys create .*) > deploy/metrics.key", COMPOSE_TEXT)
    assert keys
    build_parser().parse_args(keys[1].split())


def test_the_extras_exist() -> None:
    (extras,) = re.findall(r'pip install .* "\.\[(.*)\]"', DOCKERFILE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"postgres", "s3", "train"} == set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_the_health_check_is_python_and_asks_a_public_route() -> None:
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (.*)$", DOCKERFILE, re.MULTILINE)
    python, option, code = json.loads(check)
    assert (python, option) == ("python", "-c")
    ast.parse(code)
    assert "'/health'" in code
    assert RULES["GET /health"] == "public"
    assert "/health" in {route.path for route in health.router.routes if isinstance(route, Route)}


def test_the_server_has_no_rights_that_it_does_not_need() -> None:
    assert DOCKERFILE.index("\nUSER multilora\n") < DOCKERFILE.index("\nENTRYPOINT")
    for service in (*OWN, SERVICES["prometheus"]):
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
    for service in SERVICES.values():
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_drain_ends_before_patience_does(settings: Settings) -> None:
    assert settings.drain_seconds < int(SERVER["stop_grace_period"].removesuffix("s"))
    assert SERVER["init"] is True


def test_build_arguments_are_declared_with_the_same_defaults() -> None:
    declared = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    for service in OWN:
        assert {name: filled(value) for name, value in service["build"]["args"].items()} == declared
    assert GPU["services"]["multilora"]["build"]["args"].keys() <= declared.keys()
    for device in (declared["DEVICE"], *GPU["services"]["multilora"]["build"]["args"].values()):
        assert f"      {device}) pip install" in DOCKERFILE
