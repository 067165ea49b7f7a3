"""The server's metrics, parsed the way that Prometheus parses them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from server.engine.request import GenerationOutput, GenerationRequest, PoolingRequest, SamplingParams
from server.engine.stats import EngineStats, TenantStats
from server.metrics import OTHER, Metrics, RequestTimer
from tests.server.api.fakes import STATS

Samples = dict[tuple[Any, ...], float]


def parse(metrics: Metrics) -> Samples:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def make(stats: EngineStats = STATS, max_labels: int = 512) -> Metrics:
    return Metrics(lambda: stats, "tiny", 64, max_labels)


def test_names_of_adapters_are_not_remembered_without_end() -> None:
    metrics = make()
    for index in range(5000):
        metrics.named(f"{index:064}", "a")
    assert metrics.name(f"{4999:064}") == "a"
    assert metrics.name("f" * 64) == "f" * 12
    assert len(metrics._names) <= 4096


def test_each_tenants_sequences_and_tokens() -> None:
    stats = replace(
        STATS, tenants={"acme": TenantStats(3, 2), "": TenantStats(1, 0), "late": TenantStats(4, 5)}
    )
    metrics = make(stats, max_labels=3)
    for tenant, prompt in (("acme", (1, 2, 3)), ("gone", (1,)), ("acme", (4,))):
        request = GenerationRequest("r", prompt, SamplingParams(), tenant=tenant)
        timer = RequestTimer(metrics, "a@1", [request, request])
        timer.record(0, GenerationOutput("r", token_ids=(1,)))
        timer.record(0, GenerationOutput("r", token_ids=(1, 2)))
    RequestTimer(metrics, "a@1", [PoolingRequest("p", (1, 2), "embed", tenant="acme")]).pooled("embed")
    samples = parse(metrics)

    assert samples["multilora_tenant_prompt_tokens_total", "acme"] == 6
    assert samples["multilora_tenant_generation_tokens_total", "acme"] == 6
    assert samples["multilora_tenant_generation_tokens_total", "gone"] == 3
    gauges = {
        tenant: (
            samples["multilora_tenant_requests_running", tenant],
            samples["multilora_tenant_requests_waiting", tenant],
        )
        for tenant in ("acme", "gone", "default", OTHER)
    }
    assert gauges == {"acme": (3, 2), "gone": (0, 0), "default": (1, 0), OTHER: (4, 5)}


def test_names_are_known_as_long_as_requests_hold_them() -> None:
    metrics = make()
    metrics.hold("d", "a")
    metrics.hold("d", "a")
    metrics.hold("d", "b")
    metrics.release("d", "a")
    assert metrics.active_names(["d"]) == ["a", "b"]

    metrics.release("d", "a")
    assert metrics.active_names(["d"]) == ["b"]
    metrics.release("d", "b")
    assert metrics.active_names(["d"]) == []


def test_times_of_birth_are_not_shown() -> None:
    metrics = make()
    metrics.count("a@1", "success")

    assert b"_created" not in metrics.render()


def test_many_adapters_share_one_series_beyond_the_cap() -> None:
    metrics = make(max_labels=2)
    for adapter in ("a@1", "b@1", "c@1", "d@1", "a@1"):
        metrics.count(adapter, "success")
    samples = parse(metrics)

    assert samples["multilora_requests_total", "a@1", "success"] == 2
    assert samples["multilora_requests_total", OTHER, "success"] == 2
    assert not [key for key in samples if "c@1" in key]


def test_the_first_token_of_a_new_adapter_is_timed_once() -> None:
    metrics = make(max_labels=2)
    request = GenerationRequest("r", (1,), SamplingParams())
    for adapter in ("old@1", "a@1", "b@1"):  # room for two
        metrics.published(adapter, time.perf_counter() - 0.4)
    for adapter in ("old@1", "a@1", "a@1", "never@1"):
        RequestTimer(metrics, adapter, [request]).record(0, GenerationOutput("r", token_ids=(1,)))
    samples = parse(metrics)
    assert samples["multilora_adapter_first_token_seconds_count",] == 1
    assert samples["multilora_adapter_first_token_seconds_bucket", "0.25"] == 0
    assert samples["multilora_adapter_first_token_seconds_bucket", "30.0"] == 1

    metrics.published("late@1", time.perf_counter() - 61)
    RequestTimer(metrics, "late@1", [request]).record(0, GenerationOutput("r", token_ids=(1,)))
    assert parse(metrics)["multilora_adapter_first_token_seconds_count",] == 1


def test_a_request_is_timed_and_counted_once() -> None:
    metrics = make()
    request = GenerationRequest("r", (1,), SamplingParams())
    timer = RequestTimer(metrics, "a@1", [request, request])
    for index in (0, 1):
        timer.record(index, GenerationOutput("r"))
        timer.record(index, GenerationOutput("r", token_ids=(1,)))
        timer.record(index, GenerationOutput("r", token_ids=(1, 2), finish_reason="stop"))
    timer.outcome = "success"
    timer.close()
    timer.close()
    samples = parse(metrics)

    assert samples["multilora_time_to_first_token_seconds_count",] == 2
    assert samples["multilora_inter_token_latency_seconds_count",] == 2
    assert samples["multilora_request_duration_seconds_count",] == 2
    assert samples["multilora_requests_total", "a@1", "success"] == 1


def test_two_servers_in_a_process_do_not_mix(tmp_path: Path) -> None:
    one, two = make(), make()
    one.count("a@1", "success")

    assert ("multilora_requests_total", "a@1", "success") not in parse(two)


def test_inputs_that_were_pooled() -> None:
    metrics = make()
    requests = [PoolingRequest(str(index), (1,), "classify") for index in range(3)]
    timer = RequestTimer(metrics, "mood@1", requests)
    timer.pooled("classify")
    timer.close()
    samples = parse(metrics)

    assert samples["multilora_pooled_inputs_total", "classify"] == 3
    assert samples["multilora_requests_total", "mood@1", "success"] == 1
    assert samples["multilora_request_duration_seconds_count",] == 1


def test_shadow_copies_and_what_they_said() -> None:
    metrics = make(max_labels=1)
    for adapter in ("a@1", "b@1"):
        metrics.shadow(adapter, "success")
        metrics.shadow(adapter, "skipped")
        metrics.shadow_answer(adapter, same=True)
        metrics.shadow_answer(adapter, same=False)
    samples = parse(metrics)

    for adapter in ("a@1", OTHER):
        assert samples["multilora_shadow_requests_total", adapter, "success"] == 1
        assert samples["multilora_shadow_requests_total", adapter, "skipped"] == 1
        assert samples["multilora_shadow_agreement_total", adapter, "same"] == 1
        assert samples["multilora_shadow_agreement_total", adapter, "different"] == 1
    assert not [name for name in samples if "b@1" in name]
