"""`/health` and `/metrics`."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from server.api.context import ServerContext
from tests.server.api.fakes import STATS, FakeEngine


def test_health_is_ok_while_the_server_takes_requests(client: TestClient) -> None:
    answer = client.get("/health")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "model": "tiny", "running": 2, "waiting": 1}


def test_health_is_a_503_while_draining_or_failed(
    client: TestClient, context: ServerContext, engine: FakeEngine
) -> None:
    context.draining = True
    draining = client.get("/health")
    engine.current = replace(STATS, healthy=False)
    failed = client.get("/health")

    assert (draining.status_code, draining.json()["status"]) == (503, "draining")
    assert (failed.status_code, failed.json()["status"]) == (503, "failed")


def test_metrics_are_prometheus_text(client: TestClient) -> None:
    client.post("/v1/completions", json={"model": "tiny", "prompt": "hi"})
    answer = client.get("/metrics")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }

    assert answer.headers["content-type"].startswith("text/plain")
    assert samples["multilora_requests_total", ("adapter", "base"), ("outcome", "success")] == 1
    assert samples["multilora_time_to_first_token_seconds_count",] == 1
    assert samples["multilora_inter_token_latency_seconds_count",] == 4
    assert samples["multilora_generation_tokens_total",] == 70
