"""The life of an adapter on a real server under traffic: no request fails, or answers as another version."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI, omit
from peft import PeftModel
from transformers import AutoModelForCausalLM

from server.spawn import start_server, stop_server
from training.base import ADAPTERS_DIR, MODEL_DIR
from training.tasks import prompt_for

FILES = ("adapter_config.json", "adapter_model.safetensors")
ANSWERS = {"spell": "G-A-R-D-E-N", "shout": "GARDEN!!!", "greeter": "Hello, Garden!"}


def content(task: str) -> dict[str, bytes]:
    config, weights = ((ADAPTERS_DIR / task / file).read_bytes() for file in FILES)
    return {"config": config, "weights": weights}


@dataclass
class Server:
    """A running server and a client for each of its two APIs."""

    folder: Path

    def start(self) -> None:
        arguments = ["--data-dir", str(self.folder / "data"), "--max-adapter-mb", "1"]
        log = self.folder / "server.log"
        self.process, self.url = start_server(arguments, log, environment={"OMP_NUM_THREADS": "1"})
        self.http = httpx.Client(base_url=f"{self.url}/v1", timeout=60)
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def publish(self, name: str, task: str, **parts: Any) -> httpx.Response:
        return self.http.post("/adapters", files={"name": (None, name), **content(task), **parts})

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self.http.post(f"/adapters/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def default(self, name: str) -> dict[int, int]:
        (alias,) = self.http.get(f"/adapters/{name}/aliases").json()["data"]
        return {target["version"]: target["percent"] for target in alias["targets"]}

    def ask(self, model: str, user: str | None = None, tokens: int = 24) -> tuple[str, str]:
        """The version that answered, and its answer."""
        done = self.openai.completions.create(
            model=model,
            prompt=prompt_for("garden"),
            temperature=0,
            max_tokens=tokens,
            user=omit if user is None else user,
        )
        return done.model, done.choices[0].text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("lifecycle"))
    server.start()
    yield server
    stop_server(server.process)


@dataclass
class Traffic:
    """Threads that ask without a pause. `seen`: answers by the version that gave them."""

    server: Server
    model: str
    stop: threading.Event = field(default_factory=threading.Event)
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Exception] = field(default_factory=list)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.seen[self.server.ask(self.model)] += 1
            except Exception as error:
                self.failures.append(error)

    def until(self, version: str) -> None:
        """Wait until this version has answered."""
        deadline = time.monotonic() + 30
        while not any(model == version for model, _ in self.seen):
            assert time.monotonic() < deadline, (version, self.seen)
            time.sleep(0.01)


@contextmanager
def traffic(server: Server, model: str, clients: int = 4) -> Iterator[Traffic]:
    asked = Traffic(server, model)
    threads = [threading.Thread(target=asked.run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        asked.stop.set()
        for thread in threads:
            thread.join()


def test_publish_promote_and_roll_back_under_traffic(server: Server) -> None:
    assert server.publish("bot", "spell").status_code == 201
    with traffic(server, "bot") as asked:
        asked.until("bot@1")
        second = server.publish("bot", "shout", promote=(None, "no"))
        assert second.json()["aliases"] == {}
        seen_of_second = any(model == "bot@2" for model, _ in asked.seen)
        assert not seen_of_second
        server.post("bot@2/promote")
        asked.until("bot@2")
        server.post("bot/rollback")
        assert server.ask("bot")[0] == "bot@1"
        assert server.publish("bot", "greeter", promote=(None, "yes")).json()["aliases"] == {"default": 100}
        asked.until("bot@3")

    assert not asked.failures
    right = {f"bot@{n}": ANSWERS[task] for n, task in ((1, "spell"), (2, "shout"), (3, "greeter"))}
    assert set(asked.seen) == set(right.items())


def test_a_canary_is_sticky_by_user_and_its_share_is_right(server: Server) -> None:
    server.publish("canary-bot", "spell")
    server.publish("canary-bot", "shout", promote=(None, "no"))
    server.post("canary-bot@2/canary", {"percent": 20})
    assert server.default("canary-bot") == {1: 80, 2: 20}

    def answered(user: str) -> str:
        return server.ask("canary-bot", user, tokens=1)[0]

    users = [f"user-{n}" for n in range(50)]
    first = {user: answered(user) for user in users}
    assert 1 <= Counter(first.values())["canary-bot@2"] <= 21  # of 50, within 4 standard deviations of 10
    assert all(answered(user) == first[user] for user in users[:10])
    server.post("canary-bot@2/canary", {"percent": 50})
    for user in users:
        if first[user] == "canary-bot@2":  # who was on the canary stays there when it grows
            assert answered(user) == "canary-bot@2"
    server.post("canary-bot/rollback")
    assert server.default("canary-bot") == {1: 80, 2: 20}


def test_deprecated_versions_answer_and_aliased_ones_stay(server: Server) -> None:
    server.publish("old-bot", "spell")
    old = server.post("old-bot@1/deprecate", {"reason": "use old-bot@2"})
    assert (old["state"], old["reason"]) == ("deprecated", "use old-bot@2")
    assert server.ask("old-bot") == ("old-bot@1", ANSWERS["spell"])

    refused = server.http.delete("/adapters/old-bot@1")
    assert refused.status_code == 409
    assert "default" in refused.json()["error"]["message"]
    server.publish("old-bot", "shout")
    with traffic(server, "old-bot@1", clients=2) as asked:
        asked.until("old-bot@1")
        gone = server.http.delete("/adapters/old-bot@1", params={"drain_seconds": 30}).json()
        assert (gone["versions"], gone["drained"]) == (["old-bot@1"], True)
    assert {getattr(error, "status_code", None) for error in asked.failures} <= {404}
    assert set(asked.seen) == {("old-bot@1", ANSWERS["spell"])}
    assert server.ask("old-bot") == ("old-bot@2", ANSWERS["shout"])
    assert server.http.get("/adapters/old-bot@1").json()["state"] == "deleted"


def test_an_upload_is_idempotent_and_may_be_checked_later(server: Server) -> None:
    sha256 = hashlib.sha256(content("greeter")["weights"]).hexdigest()
    later = server.http.post(
        "/adapters",
        params={"wait": "false"},
        files={
            "name": (None, "later-bot"),
            "sha256": (None, sha256),
            "lineage": (None, json.dumps({"job": "ft-1", "scores": {"accuracy": 0.9}})),
            **content("greeter"),
        },
    )
    assert (later.status_code, later.json()["state"]) == (202, "uploaded")
    deadline = time.monotonic() + 30
    while (shown := server.http.get("/adapters/later-bot@1").json())["state"] != "ready":
        assert shown["state"] in ("uploaded", "checking"), shown
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert shown["lineage"]["scores"] == {"accuracy": 0.9}
    assert server.ask("later-bot") == ("later-bot@1", ANSWERS["greeter"])

    again = server.publish("later-bot", "greeter", digest=(None, shown["digest"]))
    assert (again.status_code, again.json()["id"]) == (200, "later-bot@1")
    known = server.http.get("/adapters", params={"digest": shown["digest"]}).json()["data"]
    assert "later-bot@1" in {version["id"] for version in known}
    wrong = server.publish("later-bot", "spell", digest=(None, shown["digest"]))
    assert wrong.status_code == 400


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]])).logits
    return found


def test_what_is_pulled_loads_in_plain_peft_and_merged_in_plain_transformers(
    server: Server, tmp_path: Path
) -> None:
    server.publish("pull-bot", "shout")
    pulled, merged = tmp_path / "pulled", tmp_path / "merged"
    pulled.mkdir()
    for file in FILES:
        answer = server.http.get(f"/adapters/pull-bot@1/files/{file}")
        assert hashlib.sha256(answer.content).hexdigest() == answer.headers["x-sha256"]
        (pulled / file).write_bytes(answer.content)
        assert answer.content == (ADAPTERS_DIR / "shout" / file).read_bytes()
    answer = server.http.get("/adapters/pull-bot/merged", timeout=120)
    assert answer.status_code == 200, answer.text
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(merged, filter="data")

    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    plain = logits(base)
    theirs = logits(PeftModel.from_pretrained(base, str(pulled)))
    ours = logits(AutoModelForCausalLM.from_pretrained(merged / "pull-bot-1", dtype=torch.float32))
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert not torch.allclose(plain, theirs, atol=1)


def everything(server: Server, name: str) -> list[Any]:
    """All that is told of the adapters, but for what is in memory."""
    aliases = f"/{name}/aliases"
    paths = ("?all=true", aliases, f"{aliases}/default/history", f"{aliases}/next/history")
    found = [server.http.get(f"/adapters{path}").json()["data"] for path in paths]
    return [[{key: value for key, value in each.items() if key != "tier"} for each in one] for one in found]


def test_a_killed_server_keeps_everything(server: Server) -> None:
    for task in ("spell", "shout", "greeter"):
        server.publish("kept-bot", task)
    server.post("kept-bot@1/promote")
    server.post("kept-bot@2/pin")
    server.post("kept-bot@1/deprecate", {"reason": "old"})
    server.http.put("/adapters/kept-bot/aliases/next", json={"targets": [{"version": 3}], "shadow": 2})
    assert server.http.delete("/adapters/kept-bot@3", params={"force": "true"}).status_code == 200
    before = everything(server, "kept-bot")
    server.process.kill()
    server.process.wait()
    server.start()

    assert everything(server, "kept-bot") == before
    deadline = time.monotonic() + 30
    while server.http.get("/adapters/kept-bot@2").json()["tier"] != "device":
        assert time.monotonic() < deadline  # it is pinned, so it is loaded before anyone asks
        time.sleep(0.02)
    in_memory = {each["id"]: each for each in server.http.get("/status").json()["adapters"]}
    assert (in_memory["kept-bot@2"]["tier"], in_memory["kept-bot@2"]["desired"]) == ("device", "pinned")
    assert server.ask("kept-bot") == ("kept-bot@1", ANSWERS["spell"])
    assert server.publish("kept-bot", "greeter").json()["id"] == "kept-bot@4"
