"""What belongs to another tenant and is not shared answers exactly as what never existed, on every route."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from adapters.registry.records import LOCAL, Caller
from server.access.rules import RULES
from tests.server.api.fakes import BASE as FAKE
from tests.server.api.stand import config, weights
from tests.server.api.tenancy import Client, Server, serving

MODEL = FAKE.name
HIDDEN, NEVER = "legal", "never"
"""Another tenant's adapter, and a name of the same length that nobody has."""


@dataclass
class World:
    """Two tenants, of which `acme` has adapters, aliases, keys, a training file, a job and a past."""

    server: Server
    acme: Client
    other: Client
    operator: Client
    file: str
    job: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    place = folder / "allowed" / "adapter"
    place.mkdir(parents=True)
    (place / "adapter_config.json").write_bytes(config(9))
    (place / "adapter_model.safetensors").write_bytes(weights())
    with (
        serving(folder, adapter_dir=folder / "allowed") as server,
        server.client("default", "operator") as operator,
        server.client("acme") as acme,
        server.client("other") as other,
    ):
        for alpha in (1, 2):
            assert acme.publish(HIDDEN, alpha).status_code == 201
        alias = {"targets": [{"version": 1, "percent": 100}]}
        assert acme.put(f"/v1/adapters/{HIDDEN}/aliases/prod", json=alias).status_code == 200
        assert acme.post(f"/v1/adapters/{HIDDEN}@1/pin").status_code == 200
        for name, whom in (("given", "other"), ("public", "*")):
            assert acme.publish(name, 3).status_code == 201
            assert acme.put(f"/v1/adapters/{name}/shares/{whom}").status_code == 200
        data: dict[str, Any] = {"file": ("x.jsonl", b"{}\n"), "purpose": (None, "fine-tune")}
        file = acme.post("/v1/files", files=data).json()["id"]
        asked = {"model": MODEL, "training_file": file}
        job = acme.post("/v1/fine_tuning/jobs", json=asked).json()["id"]
        world = World(server, acme, other, operator, file, job)
        before = state(world)
        yield world
        assert state(world) == before, "another tenant changed something"


Call = tuple[str, str, dict[str, Any]]
"""Method, path, and what httpx sends; `NAME` stands for a name in all of them."""
SEND = {"prompt": "hi", "max_tokens": 2}
MIXED = {"model": MODEL, "adapters": [{"name": "NAME", "scale": 0.5}]}
CALLS: list[Call] = [
    ("POST", "/v1/completions", {"json": {"model": "NAME", **SEND}}),
    ("POST", "/v1/completions", {"json": {"model": "NAME", "stream": True, **SEND}}),
    ("POST", "/v1/completions", {"json": {"model": f"{MODEL}:NAME", **SEND}}),
    ("POST", "/v1/completions", {"json": {"model": MODEL, "lora_path": "NAME", **SEND}}),
    ("POST", "/v1/completions", {"json": {"model": MODEL, "adapter_id": "NAME", **SEND}}),
    (
        "POST",
        "/v1/completions",
        {"json": {"model": MODEL, **SEND}, "headers": {"X-Amzn-SageMaker-Adapter-Identifier": "NAME"}},
    ),
    ("POST", "/v1/completions", {"json": {**MIXED, **SEND}}),
    (
        "POST",
        "/v1/chat/completions",
        {"json": {"model": "NAME", "messages": [{"role": "user", "content": "x"}]}},
    ),
    ("POST", "/v1/embeddings", {"json": {"model": "NAME", "input": "hi"}}),
    ("POST", "/v1/embeddings", {"json": {**MIXED, "input": "hi"}}),
    ("POST", "/v1/classify", {"json": {"model": "NAME", "input": "hi"}}),
    ("POST", "/v1/token_classify", {"json": {"model": "NAME", "input": "hi"}}),
    ("GET", "/v1/models/NAME", {}),
    ("GET", "/v1/adapters", {"params": {"name": "NAME"}}),
    ("GET", "/v1/adapters", {"params": {"name": "NAME", "all": "true"}}),
    ("GET", "/v1/adapters", {"params": {"after": "NAME"}}),
    ("GET", "/v1/adapters/NAME", {}),
    ("GET", "/v1/adapters/NAME/aliases", {}),
    ("GET", "/v1/adapters/NAME/aliases/default/history", {}),
    ("GET", "/v1/adapters/NAME/aliases/prod/history", {}),
    ("GET", "/v1/adapters/NAME/lineage", {}),
    ("GET", "/v1/adapters/NAME/files/adapter_config.json", {}),
    ("GET", "/v1/adapters/NAME/files/lineage.json", {}),
    ("GET", "/v1/adapters/NAME/merged", {}),
    ("GET", "/v1/adapters/NAME/shares", {}),
    ("POST", "/v1/adapters", {"files": {"name": (None, "NAME"), "config": config(5), "weights": weights()}}),
    ("PUT", "/v1/adapters/NAME/aliases/prod", {"json": {"targets": [{"version": 1}]}}),
    (
        "PUT",
        "/v1/adapters/NAME/aliases/prod",
        {"json": {"targets": [{"version": 1}], "expected_revision": 7}},
    ),
    ("DELETE", "/v1/adapters/NAME/aliases/prod", {}),
    ("DELETE", "/v1/adapters/NAME/aliases/default", {}),
    ("POST", "/v1/adapters/NAME/promote", {"json": {"alias": "prod"}}),
    ("POST", "/v1/adapters/NAME/rollback", {}),
    ("POST", "/v1/adapters/NAME/canary", {"json": {"percent": 10}}),
    ("POST", "/v1/adapters/NAME/deprecate", {"json": {"reason": "old"}}),
    ("POST", "/v1/adapters/NAME/preload", {}),
    ("POST", "/v1/adapters/NAME/pin", {}),
    ("POST", "/v1/adapters/NAME/unpin", {}),
    ("DELETE", "/v1/adapters/NAME", {}),
    ("DELETE", "/v1/adapters/NAME", {"params": {"force": "true"}}),
    ("PUT", "/v1/adapters/NAME/shares/other", {}),
    ("DELETE", "/v1/adapters/NAME/shares/other", {}),
    ("POST", "/v1/load_lora_adapter", {"json": {"lora_name": "NAME", "lora_path": "adapter"}}),
    ("POST", "/load_lora_adapter", {"json": {"lora_name": "NAME", "lora_path": "adapter"}}),
    ("POST", "/adapters", {"json": {"name": "NAME", "src": "adapter"}}),
    ("POST", "/v1/unload_lora_adapter", {"json": {"lora_name": "NAME"}}),
    ("POST", "/unload_lora_adapter", {"json": {"lora_name": "NAME"}}),
    ("DELETE", "/adapters/NAME", {}),
    ("GET", "/v1/files", {"params": {"after": "FILE"}}),
    ("GET", "/v1/files/FILE", {}),
    ("GET", "/v1/files/FILE/content", {}),
    ("DELETE", "/v1/files/FILE", {}),
    ("POST", "/v1/fine_tuning/jobs", {"json": {"model": "NAME", "training_file": "FILE"}}),
    ("POST", "/v1/fine_tuning/jobs", {"json": {"model": MODEL, "training_file": "FILE"}}),
    ("GET", "/v1/fine_tuning/jobs", {"params": {"after": "JOB"}}),
    ("GET", "/v1/fine_tuning/jobs/JOB", {}),
    ("GET", "/v1/fine_tuning/jobs/JOB/events", {}),
    ("GET", "/v1/fine_tuning/jobs/JOB/checkpoints", {}),
    ("POST", "/v1/fine_tuning/jobs/JOB/cancel", {}),
    ("POST", "/v1/fine_tuning/jobs/JOB/pause", {}),
    ("POST", "/v1/fine_tuning/jobs/JOB/resume", {}),
    ("GET", "/v1/audit", {"params": {"subject": "NAME"}}),
    ("GET", "/v1/keys", {"params": {"tenant": "TENANT"}}),
    ("GET", "/v1/keys", {"params": {"after": "KEY"}}),
    ("GET", "/v1/keys/KEY", {}),
    ("DELETE", "/v1/keys/KEY", {}),
    ("POST", "/v1/keys", {"json": {"name": "x", "scopes": ["use"], "tenant": "TENANT"}}),
]
NAMELESS = {
    "GET /health",
    "GET /metrics",
    "GET /openapi.json",
    "GET /v1/models",
    "GET /v1/status",
    "POST /load_lora_adapter_from_tensors",
    "POST /v1/files",
    "GET /v1/fine_tuning/model_limits",
}
"""Routes that take no name."""
OPERATORS = {route for route, rule in RULES.items() if rule == "operator"}
"""Routes that are closed to every tenant's own keys before they look at anything."""


def test_every_route_that_takes_a_name_is_tried() -> None:
    tried = {f"{method} {path}" for method, path, _ in CALLS}
    missing = [
        rule
        for rule in RULES
        if rule not in NAMELESS | OPERATORS and not any(_fits(rule, call) for call in tried)
    ]
    assert missing == []


def _fits(rule: str, call: str) -> bool:
    """`PUT /x/NAME/aliases/{alias}` and `PUT /x/NAME/aliases/prod`."""
    ours, theirs = rule.split("/"), call.split("/")
    return len(ours) == len(theirs) and all(
        a == b or a.startswith("{") for a, b in zip(ours, theirs, strict=True)
    )


def filled(call: Call, words: dict[str, str]) -> tuple[str, str, dict[str, Any]]:
    """`call` with names in the place of what stands for them."""
    method, path, sent = _replace(call, words)
    return method, path, sent


def _replace(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replace(inner, words) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(inner, words) for inner in value)
    if isinstance(value, str):
        for word, name in words.items():
            value = value.replace(word, name)
    return value


def answer(client: Client, call: Call, words: dict[str, str]) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers, without what differs from answer to answer, and without the names."""
    method, path, sent = filled(call, words)
    got = client.request(method, path, **sent)
    text = got.text
    for word, name in words.items():
        if word in str(call):
            text = text.replace(name.removeprefix("acme/").partition("@")[0], word)
    changing = ("date", "content-length", "x-request-id")
    return got.status_code, text, {name: v for name, v in got.headers.items() if name not in changing}


LISTS = ("/v1/adapters", "/v1/audit")


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[1]}")
def test_what_is_hidden_answers_as_what_never_was(call: Call, world: World) -> None:
    method, path, sent = call
    for form in ("acme/{}", "acme/{}@prod"):
        hidden = {"NAME": form.format(HIDDEN), "TENANT": "acme", "KEY": key_of_acme(world)}
        hidden |= {"FILE": world.file, "JOB": world.job}
        never = {"NAME": form.format(NEVER), "TENANT": "nine", "KEY": "key-000000000000"}
        never |= {"FILE": f"file-{'0' * 24}", "JOB": f"ftjob-{'0' * 24}"}
        got, expected = answer(world.other, call, hidden), answer(world.other, call, never)
        assert got == expected, form
        if method == "GET" and path in LISTS:
            assert got[0] in (200, 400), form
        elif path.startswith(("/v1/models/", "/v1/keys/")) or "model" in sent.get("json", {}):
            assert got[0] == 404, form
        else:
            assert got[0] in (400, 403, 404), form


def test_a_bare_name_is_never_looked_up_elsewhere(world: World) -> None:
    for name in (HIDDEN, f"{HIDDEN}@1", f"{HIDDEN}@prod", "given", "public"):
        got = world.other.post("/v1/completions", json={"model": name, **SEND})
        assert (got.status_code, got.json()["error"]["code"]) == (404, "model_not_found")
        assert world.other.get(f"/v1/adapters/{name}").status_code == 404
    assert world.operator.get(f"/v1/adapters/{HIDDEN}").status_code == 404


def key_of_acme(world: World) -> str:
    return next(key.id for key in world.server.registry.keys.list("acme"))


def state(world: World) -> str:
    """All that acme has."""
    registry = world.server.registry
    versions = [version for version in registry.history() if version.tenant == "acme"]
    names = (f"acme/{HIDDEN}", "acme/given", "acme/public")
    aliases = [registry.aliases(name, LOCAL) for name in names]
    shares = [registry.shares(name, LOCAL) for name in names]
    training = world.server.context.training
    assert training is not None
    acme = Caller("acme")
    jobs = [training.files.list(acme), training.jobs.list(acme), training.jobs.events(acme, world.job)]
    return f"{versions} {aliases} {shares} {registry.keys.list('acme')} {jobs}"


def test_lists_show_ones_own_and_what_is_shared(world: World) -> None:
    seen = {
        path: world.other.get(path)
        for path in (
            "/v1/models",
            "/v1/adapters",
            "/v1/adapters?all=true",
            "/v1/status",
            "/v1/audit",
            "/v1/keys",
            "/v1/files",
            "/v1/fine_tuning/jobs",
        )
    }
    for path, got in seen.items():
        assert got.status_code == 200, path
        assert HIDDEN not in got.text, path
        for mine in (key_of_acme(world), world.file, world.job):
            assert mine not in got.text, path
        for digest in hidden_digests(world):
            assert digest[:12] not in got.text, path
    names = [card["id"] for card in seen["/v1/models"].json()["data"]]
    assert names == [MODEL, "acme/given", "acme/public"]
    assert {one["id"] for one in seen["/v1/adapters"].json()["data"]} == {"acme/given@1", "acme/public@1"}
    assert HIDDEN in world.acme.get("/v1/models").text
    assert world.acme.get("/v1/status").text.count(HIDDEN) > 0


def hidden_digests(world: World) -> list[str]:
    return [version.digest for version in world.server.registry.versions(f"acme/{HIDDEN}")]


def test_what_is_shared_answers_and_can_not_be_changed(world: World) -> None:
    for name in ("acme/given", "acme/public@1"):
        got = world.other.post("/v1/completions", json={"model": name, **SEND})
        assert got.status_code == 200
        assert got.headers["x-adapter"] == f"{name.partition('@')[0]}@1"
        for change in (
            world.other.delete(f"/v1/adapters/{name}"),
            world.other.post(f"/v1/adapters/{name}/deprecate", json={"reason": "x"}),
            world.other.put(f"/v1/adapters/{name.partition('@')[0]}/shares/other"),
        ):
            assert (change.status_code, change.json()["error"]["code"]) == (403, "adapter_forbidden")
    assert world.acme.delete("/v1/adapters/given/shares/other").status_code == 200
    try:
        assert world.other.post("/v1/completions", json={"model": "acme/given", **SEND}).status_code == 404
        assert "given" not in world.other.get("/v1/models").text
    finally:
        world.acme.put("/v1/adapters/given/shares/other")


def test_the_same_name_and_the_same_content_of_two_tenants_are_two_adapters(world: World) -> None:
    mine = world.other.publish(HIDDEN, 1)
    try:
        assert (mine.status_code, mine.json()["id"], mine.json()["version"]) == (201, f"other/{HIDDEN}@1", 1)
        assert "acme" not in mine.text
        for client, ref in ((world.other, f"other/{HIDDEN}@1"), (world.acme, f"acme/{HIDDEN}@2")):
            got = client.post("/v1/completions", json={"model": HIDDEN, **SEND})
            assert got.headers["x-adapter"] == ref
    finally:
        assert world.other.delete(f"/v1/adapters/{HIDDEN}?force=true").status_code == 200
    assert world.acme.get(f"/v1/adapters/{HIDDEN}@1").status_code == 200


def test_cached_prompts_belong_to_their_tenant(world: World) -> None:
    for client, tenant in ((world.acme, "acme"), (world.other, "other"), (world.operator, "default")):
        assert client.post("/v1/completions", json={"model": MODEL, **SEND}).status_code == 200
        request = world.server.engine.requests[-1]
        assert (request.scope, request.tenant) == (tenant, tenant)
        assert client.post("/v1/embeddings", json={"model": MODEL, "input": "hi"}).status_code == 200
        pooled = world.server.engine.pooling[-1]
        assert (pooled.scope, pooled.tenant) == (tenant, tenant)


def test_metrics_and_the_operators_routes_are_closed_to_tenants(world: World) -> None:
    world.acme.post("/v1/completions", json={"model": HIDDEN, **SEND})
    for client in (world.acme, world.other):
        got = client.get("/metrics")
        assert (got.status_code, got.json()["error"]["code"]) == (403, "insufficient_scope")
        for route in sorted(OPERATORS):
            method, path = route.split(" ")
            closed = client.request(method, path.replace("{name}", "acme"), json={})
            assert (closed.status_code, closed.json()["error"]["code"]) == (403, "insufficient_scope")
    assert HIDDEN in world.operator.get("/metrics").text
    health = httpx.get(f"{world.server.url}/health")
    assert HIDDEN not in health.text


def test_an_operator_sees_and_changes_everything(world: World) -> None:
    assert world.operator.get(f"/v1/adapters/acme/{HIDDEN}").json()["id"] == f"acme/{HIDDEN}@2"
    assert HIDDEN in world.operator.get("/v1/models").text
    done = world.operator.post(f"/v1/adapters/acme/{HIDDEN}@1/deprecate", json={"reason": "old"})
    assert done.json()["state"] == "deprecated"
    undone = world.operator.post(f"/v1/adapters/acme/{HIDDEN}@1/deprecate", json={"reason": None})
    assert undone.json()["state"] == "ready"
    subjects = [entry["subject"] for entry in world.operator.get("/v1/audit?limit=1000").json()["data"]]
    assert f"acme/{HIDDEN}@1" in subjects
