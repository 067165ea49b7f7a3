"""Two servers on one Postgres and one bucket: what one is told the other knows within a second."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.spawn import start_server, stop_server
from tests import s3
from tests.postgres import Cluster
from training.base import shipped_adapters
from training.tasks import prompt_for

SECONDS = 1.0
ADMIN = "operator-of-two-replicas"
ANSWERS = {"spell": "G-A-R-D-E-N", "shout": "GARDEN!!!", "greeter": "Hello, Garden!"}
LONG = 400


@dataclass
class Replica:
    """One server, as its operator speaks to it."""

    http: httpx.Client
    log: Path

    def publish(self, name: str, task: str) -> httpx.Response:
        folder = shipped_adapters()[task]
        files = ("config", "adapter_config.json"), ("weights", "adapter_model.safetensors")
        return self.http.post(
            "/adapters",
            data={"name": name},
            files={part: (folder / file).read_bytes() for part, file in files},
        )

    def ask(self, model: str, key: str = ADMIN, **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": prompt_for("garden"), "temperature": 0, "max_tokens": 24, **fields}
        return self.http.post("/completions", json=body, headers={"Authorization": f"Bearer {key}"})

    def answer(self, model: str, **fields: Any) -> tuple[str, str]:
        """The version that answered, and its answer; empty where there is none."""
        done = self.ask(model, **fields)
        if done.status_code == 404:
            return "", ""
        assert done.status_code == 200, done.text
        return done.headers["x-adapter"], done.json()["choices"][0]["text"]


class World:
    """Two replicas, and the way to their database."""

    def __init__(self, replicas: list[Replica], cluster: Cluster, database: str) -> None:
        self.first, self.second = replicas
        self._cluster, self._database = cluster, database

    def cut(self) -> None:
        """The database ends all connections and takes no new one."""
        self._cluster.execute(f"ALTER DATABASE {self._database} ALLOW_CONNECTIONS false")
        ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
        self._cluster.execute(f"{ends}'{self._database}'")

    def mend(self) -> None:
        self._cluster.execute(f"ALTER DATABASE {self._database} ALLOW_CONNECTIONS true")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, postgres: Cluster) -> Iterator[World]:
    folder, bucket = tmp_path_factory.mktemp("replicas"), s3.new_bucket()
    with ExitStack() as opened:
        url = opened.enter_context(postgres.database())
        environment = {
            **s3.environment(bucket.endpoint),
            "OMP_NUM_THREADS": "1",
            "MULTILORA_DATABASE_URL": url,
            "MULTILORA_ADMIN_KEY": ADMIN,
        }

        def start(name: str) -> Replica:
            arguments = ["--port", "0", "--data-dir", str(folder / name), "--blob-url", bucket.url]
            log = folder / f"{name}.log"
            process, address = start_server(arguments, log, environment=environment)
            opened.callback(stop_server, process)
            http = httpx.Client(base_url=f"{address}/v1", headers={"X-API-Key": ADMIN}, timeout=60)
            return Replica(opened.enter_context(http), log)

        with ThreadPoolExecutor(2) as both:
            replicas = list(both.map(start, ("one", "two")))
        yield World(replicas, postgres, url.partition("@/")[2].partition("?")[0])
    for replica in replicas:
        assert "Traceback" not in replica.log.read_text()


def soon(look: Callable[[], bool]) -> None:
    """Within a second, measured from the answer that told of the change."""
    end = time.monotonic() + SECONDS
    while True:
        began = time.monotonic()  # an answer may take longer; what counts is what it was asked
        if look():
            return
        assert began < end, "not seen within a second"
        time.sleep(0.02)


def test_what_one_is_told_the_other_does(world: World) -> None:
    first, second = world.first, world.second
    assert first.publish("bot", "spell").json()["id"] == "bot@1"
    soon(lambda: second.answer("bot") == ("bot@1", ANSWERS["spell"]))
    assert second.publish("bot", "shout").json()["id"] == "bot@2"
    soon(lambda: first.answer("bot") == ("bot@2", ANSWERS["shout"]))

    assert first.http.post("/adapters/bot@1/promote").status_code == 200
    soon(lambda: second.answer("bot") == ("bot@1", ANSWERS["spell"]))
    assert second.http.post("/adapters/bot@2/canary", json={"percent": 50}).status_code == 200
    soon(lambda: {first.answer("bot", user=str(n), max_tokens=1)[0] for n in range(8)} == {"bot@1", "bot@2"})
    users = [str(n) for n in range(12)]
    chosen = [first.answer("bot", user=user, max_tokens=1)[0] for user in users]
    assert chosen == [second.answer("bot", user=user, max_tokens=1)[0] for user in users]
    assert first.http.post("/adapters/bot/rollback").status_code == 200
    soon(lambda: {second.answer("bot", user=user, max_tokens=1)[0] for user in users} == {"bot@1"})

    alias = {"targets": [{"version": 2}], "expected_revision": 0}
    assert first.http.put("/adapters/bot/aliases/prod", json=alias).status_code == 200
    assert second.http.put("/adapters/bot/aliases/prod", json=alias).status_code == 409
    soon(lambda: second.answer("bot@prod") == ("bot@2", ANSWERS["shout"]))
    assert second.http.delete("/adapters/bot@2").status_code == 409
    assert second.http.delete("/adapters/bot", params={"force": True}).status_code == 200
    soon(lambda: first.answer("bot") == ("", ""))
    assert first.publish("bot", "greeter").json()["id"] == "bot@3"
    soon(lambda: second.answer("bot") == ("bot@3", ANSWERS["greeter"]))


def test_keys_and_tenants_are_known_to_both(world: World) -> None:
    first, second = world.first, world.second
    assert first.publish("public", "shout").status_code == 201
    assert first.http.put("/tenants/acme", json={}).status_code in (200, 201)
    made = first.http.post("/keys", json={"tenant": "acme", "name": "app", "scopes": ["use"]})
    assert made.status_code in (200, 201), made.text
    key, secret = made.json()["id"], made.json()["secret"]
    soon(lambda: second.ask("public", secret).status_code == 404)  # known, and not shared
    assert first.ask("public", "ml-not-a-key").status_code == 401
    assert second.http.put("/adapters/public/shares/acme").status_code in (200, 201)
    soon(lambda: first.ask("default/public", secret).status_code == 200)
    assert second.http.delete(f"/keys/{key}").status_code == 200
    soon(lambda: first.ask("default/public", secret).status_code == 401)


def test_a_version_that_is_deleted_on_one_finishes_its_answers_on_the_other(world: World) -> None:
    first, second = world.first, world.second
    assert first.publish("doomed", "greeter").status_code == 201
    soon(lambda: second.answer("doomed")[0] == "doomed@1")
    _, expected = second.answer("doomed", max_tokens=LONG, ignore_eos=True)
    body = {"model": "doomed", "prompt": prompt_for("garden"), "temperature": 0, "stream": True}
    body |= {"max_tokens": LONG, "ignore_eos": True}
    with second.http.stream("POST", "/completions", json=body) as answer:
        assert answer.headers["x-adapter"] == "doomed@1"
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        text = json.loads(next(lines))["choices"][0]["text"]
        assert first.http.delete("/adapters/doomed").status_code == 200
        soon(lambda: second.answer("doomed") == ("", ""))
        *events, end = lines
    assert end == "[DONE]"
    assert text + "".join(json.loads(event)["choices"][0]["text"] for event in events) == expected
    soon(lambda: second.http.get("/adapters/doomed@1").json()["state"] == "deleted")


def test_answers_go_on_while_the_database_is_away(world: World) -> None:
    first, second = world.first, world.second
    assert first.publish("steady", "spell").status_code == 201
    soon(lambda: second.answer("steady")[0] == "steady@1")
    world.cut()
    try:
        for replica in (first, second):
            assert replica.answer("steady") == ("steady@1", ANSWERS["spell"])
            refused = replica.publish("steady", "shout")
            assert refused.status_code == 503
            assert "database" in refused.json()["error"]["message"]
            assert ADMIN not in refused.text
            assert replica.http.post("/adapters/steady@1/promote").status_code == 503
            assert replica.http.delete("/adapters/steady").status_code == 503
            assert replica.answer("steady") == ("steady@1", ANSWERS["spell"])
            assert httpx.get(str(replica.http.base_url.copy_with(path="/health"))).status_code == 200
    finally:
        world.mend()

    soon(lambda: second.publish("steady", "shout").status_code in (200, 201))
    soon(lambda: first.answer("steady") == ("steady@2", ANSWERS["shout"]))
