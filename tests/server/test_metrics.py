"""The server's metrics, parsed the way that Prometheus parses them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.engine.request import GenerationOutput, GenerationRequest, PoolingRequest, SamplingParams
from server.engine.stats import EngineStats
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


def test_the_engines_numbers() -> None:
    samples = parse(make())

    expected = {
        "multilora_requests_running": 2,
        "multilora_requests_waiting": 1,
        "multilora_kv_blocks_used": 5,
        "multilora_kv_blocks": 20,
        "multilora_prefix_cache_queries_total": 100,
        "multilora_prefix_cache_hits_total": 40,
        "multilora_preemptions_total": 3,
        "multilora_prompt_tokens_total": 60,
        "multilora_generation_tokens_total": 70,
        "multilora_steps_total": 11,
        "multilora_step_seconds_total": 1.5,
        "multilora_adapter_loads_total": 6,
        "multilora_adapter_evictions_total": 1,
        "multilora_adapter_load_seconds_total": 0.5,
        "multilora_merged_bytes": 4000,
        "multilora_merge_builds_total": 2,
        "multilora_merge_build_seconds_total": 0.75,
        "multilora_adapter_budget_bytes": 5000,
        "multilora_engine_healthy": 1,
    }
    assert {name: samples[name,] for name in expected} == expected
    assert samples["multilora_merged_adapter", "abcdefabcdef"] == 1
    parts = {part: samples["multilora_step_part_seconds_total", part] for part in STATS.step_parts}
    assert parts == {"schedule": 0.125, "forward": 1.25, "sample": 0.125, "deliver": 0.25}
    assert samples["multilora_adapters_resident", "device"] == 2
    assert samples["multilora_adapters_resident", "host"] == 4
    assert samples["multilora_adapter_bytes", "device"] == 1000
    assert samples["multilora_adapter_bytes", "host"] == 3000


def test_vllms_names_for_gateways() -> None:
    metrics = make(replace(STATS, adapters_running=("d1", "d2"), adapters_waiting=("d3", "unseen")))
    for digest, name in (("d1", "shop"), ("d2", "law"), ("d3", "sql"), ("d4", "idle")):
        metrics.hold(digest, name)
    samples = parse(metrics)

    assert samples["vllm:num_requests_running", "0", "tiny"] == 2
    assert samples["vllm:num_requests_waiting", "0", "tiny"] == 1
    assert samples["vllm:kv_cache_usage_perc", "0", "tiny"] == 0.25
    assert samples["vllm:lora_requests_info", "64", "law,shop", "sql"] == pytest.approx(time.time(), abs=5)
    assert len([key for key in samples if key[0] == "vllm:lora_requests_info"]) == 1
    for label in ("max_lora", "waiting_lora_adapters", "running_lora_adapters"):
        assert f'{label}="' in metrics.render().decode()


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
