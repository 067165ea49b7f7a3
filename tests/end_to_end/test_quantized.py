"""A real server on the shipped base, quantised."""

from __future__ import annotations

from pathlib import Path

import httpx

from server.engine.loading import base_digest
from server.spawn import serving
from training.base import ADAPTERS_DIR, MODEL_DIR


def test_it_answers_through_http(tmp_path: Path) -> None:
    arguments = ["--quantization", "nf4", "--data-dir", str(tmp_path / "data")]
    arguments += ["--adapter", f"shout={ADAPTERS_DIR / 'shout'}"]
    with serving(arguments, tmp_path / "log", environment={"OMP_NUM_THREADS": "1"}) as url:
        base, adapter = httpx.get(f"{url}/v1/models").json()["data"]
        assert (base["quantization"], adapter["id"]) == ("nf4", "shout")
        assert httpx.get(f"{url}/v1/adapters/shout").json()["base_digest"] == base_digest(MODEL_DIR)

        files = {part: (ADAPTERS_DIR / "shout" / f"adapter_{name}").open("rb") for part, name in PARTS}
        trained_on = {"name": "again", "quantization": "int8"}
        upload = httpx.post(f"{url}/v1/adapters", data=trained_on, files=files, timeout=30).json()
        assert upload["trained_on_quantization"] == "int8"
        assert len(upload["warnings"]) == 1

        answers = {}
        for model in ("base", "shout", "again"):
            body = {"model": model, "prompt": "hello", "max_tokens": 8, "temperature": 0}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-base-digest"] != base_digest(MODEL_DIR)
            answers[model] = answer.json()["choices"][0]["text"]
        assert answers["shout"] == answers["again"] != answers["base"]
    assert "trained on its base with quantization int8" in (tmp_path / "log").read_text()


PARTS = (("config", "config.json"), ("weights", "model.safetensors"))
