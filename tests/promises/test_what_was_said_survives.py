"""Law 9: what was acknowledged survives kill -9; what was not leaves no half adapter visible."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from pathlib import Path

import httpx

from server.spawn import start_server
from tests.adapters.conftest import plain_adapter, spec_of, tiny_llama
from tests.promises.changing import Place
from tests.promises.killed import Killed
from training.base import ADAPTERS_DIR

ROUNDS = 5
CONFIG = json.loads((ADAPTERS_DIR / "shout" / "adapter_config.json").read_bytes())
WEIGHTS = (ADAPTERS_DIR / "shout" / "adapter_model.safetensors").read_bytes()


class Uploader:
    """Publishes and deletes one after another until the server is gone, and notes what it was told."""

    def __init__(self, url: str, seed: int, live: dict[str, str]) -> None:
        self.url, self.chance, self.live = url, random.Random(seed), live
        self.acknowledged = 0
        self.doubtful: set[str] = set()
        """What it asked to delete and was not told of."""
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self.url, timeout=60) as client:
                while True:
                    if self.live and self.chance.random() < 0.3:
                        self.delete(client, self.chance.choice(sorted(self.live)))
                    else:
                        self.publish(client, f"a{self.chance.randrange(4)}")
        except httpx.TransportError:
            return

    def publish(self, client: httpx.Client, name: str) -> None:
        config = json.dumps({**CONFIG, "lora_alpha": self.chance.random()}).encode()
        files = {"config": config, "weights": WEIGHTS}
        answer = client.post("/v1/adapters", data={"name": name}, files=files)
        assert answer.status_code == 201
        self.live[answer.json()["id"]] = answer.json()["digest"]
        self.acknowledged += 1

    def delete(self, client: httpx.Client, ref: str) -> None:
        self.doubtful = {ref}
        assert client.delete(f"/v1/adapters/{ref}?force=true").status_code == 200
        del self.live[ref]
        self.doubtful = set()


def begin_half_an_upload(url: str) -> socket.socket:
    """A connection on which an upload has come, save its end."""
    parts = {"name": b"half", "config": json.dumps(CONFIG).encode(), "weights": WEIGHTS}
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in parts.items()
    )
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(
        f"POST /v1/adapters HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body) + 7}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode()
        + body
    )
    return connection


def check(url: str, data: Path, live: dict[str, str], doubtful: set[str]) -> None:
    """All that was acknowledged is there and whole, and nothing else but what may be."""
    shown = {adapter["id"]: adapter["digest"] for adapter in httpx.get(f"{url}/v1/adapters").json()["data"]}
    certain = {ref: digest for ref, digest in live.items() if ref not in doubtful}
    assert certain.items() <= shown.items()
    assert len(shown.keys() - certain.keys() - doubtful) <= 1  # published, and killed before it could say so
    assert not any(ref.startswith("half@") for ref in shown)
    assert {folder.name for folder in (data / "adapters").iterdir()} == set(shown.values())
    assert not any((data / "uploads").glob("*"))
    for ref, digest in shown.items():
        body = {"model": ref, "prompt": "do: garden\n", "max_tokens": 1}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert (answer.status_code, answer.headers["x-adapter-digest"]) == (200, digest)
    live.clear()
    live.update(shown)


def test_kill_at_any_instant_of_uploads_over_http(tmp_path: Path) -> None:
    chance = random.Random(9)
    arguments = ["--port", "0", "--data-dir", str(tmp_path / "data")]
    live: dict[str, str] = {}
    doubtful: set[str] = set()
    acknowledged = 0
    for seed in range(ROUNDS):
        process, url = start_server(arguments, tmp_path / "log", environment={"OMP_NUM_THREADS": "1"})
        try:
            check(url, tmp_path / "data", live, doubtful)
            with begin_half_an_upload(url):
                uploader = Uploader(url, seed, live)
                # The first round ends whenever it does; in the others something was said before.
                while seed and not uploader.acknowledged and uploader.thread.is_alive():
                    time.sleep(0.01)
                time.sleep(chance.uniform(0.0, 0.8))
                process.kill()
        finally:
            process.kill()
            process.wait()
        uploader.thread.join(30)
        assert not uploader.thread.is_alive()
        doubtful = uploader.doubtful
        acknowledged += uploader.acknowledged
    assert acknowledged >= ROUNDS - 1


def survive(rounds: int, place: Place) -> None:
    killed = Killed(place)
    for seed in range(rounds):
        killed.round(seed)
    assert killed.told.total() >= rounds
    assert len(killed.unsaid) >= 6  # of the nine kinds of changes
    with place.open() as registry:
        report = registry.sweep()
        assert (report.quarantined, report.missing) == ((), ())


def place(folder: Path, url: str | None, store: str | None) -> Place:
    adapter = plain_adapter(folder / "adapter").folder
    return Place(folder / "data", url, store, spec_of(tiny_llama()), adapter)


def test_kill_at_any_instant_of_any_change(tmp_path: Path) -> None:
    survive(130, place(tmp_path, None, None))


def test_kill_at_any_instant_with_a_store(tmp_path: Path) -> None:
    survive(40, place(tmp_path, None, (tmp_path / "store").as_uri()))


def test_kill_at_any_instant_with_postgres_and_a_store(tmp_path: Path, postgres_url: str) -> None:
    survive(30, place(tmp_path, postgres_url, (tmp_path / "store").as_uri()))
