"""The engine's numbers, parsed the way that Prometheus parses them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from adapters.tier import LoadedAdapter
from tests.server.api.fakes import STATS
from tests.server.test_metrics import make, parse


def test_the_engines_numbers() -> None:
    samples = parse(make(replace(STATS, fairness_preemptions=2)))

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
        "multilora_fairness_preemptions_total": 2,
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


def test_what_is_in_memory_by_name_and_level() -> None:
    loaded = (
        LoadedAdapter("d0" * 32, "host", 16, False),
        LoadedAdapter("d1", "device", 8, True),
        LoadedAdapter("d2", "device", 4, False),
    )
    metrics = make(replace(STATS, adapters_loaded=loaded, pins=3))
    metrics.named("d1", "acme/shop")
    metrics.hold("d2", "law")
    metrics.release("d2", "law")
    samples = parse(metrics)

    shown = {key[1:] for key in samples if key[0] == "vllm:lora_adapter_loaded"}
    assert shown == {
        ("acme/shop", "gpu", "true", "8"),
        ("law", "gpu", "false", "4"),
        ("d0" * 6, "cpu", "false", "16"),
    }
    assert samples["multilora_adapters_pinned",] == 1
    assert samples["multilora_adapters_pinned_missing",] == 2
    text = metrics.render().decode()
    assert 'vllm:lora_adapter_loaded{adapter_name="law",level="gpu",pinned="false",rank="4"} 1.0' in text


def test_of_very_many_in_memory_the_pinned_and_the_last_are_shown() -> None:
    loaded = tuple(LoadedAdapter(str(index), "device", 8, index == 3) for index in range(600))
    samples = parse(make(replace(STATS, adapters_loaded=loaded)))
    shown = [key[1] for key in samples if key[0] == "vllm:lora_adapter_loaded"]
    assert len(shown) == 512
    assert {"3", "599", "89"} <= {*shown}
    assert "88" not in shown
