"""Versions are immutable, durable, and gone only when deleted and no longer held."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import pytest
import torch

from adapters.base import BaseSpec
from adapters.blobs.local import CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import (
    AdapterConflict,
    AdapterNotFound,
    AdapterTooLarge,
    InvalidAdapter,
    InvalidName,
)
from adapters.limits import AdapterLimits
from adapters.registry.lineage import LINEAGE_FILE
from adapters.registry.registry import Registry
from tests.adapters.conftest import LIMITS, AdapterFiles


@pytest.fixture
def registry(tmp_path: Path, base: BaseSpec) -> Iterator[Registry]:
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        yield registry


def blobs(tmp_path: Path) -> set[str]:
    return {entry.name for entry in (tmp_path / "data" / "adapters").iterdir()}


def test_publish_and_resolve(registry: Registry, files: AdapterFiles, base: BaseSpec) -> None:
    version, created = registry.publish("tone", files.config, files.weights, source="test")
    assert created
    assert (version.ref, version.base_digest, version.source) == ("tone@1", base.digest, "test")
    assert (version.rank, version.target_modules) == (4, ("q_proj", "v_proj"))
    assert version.size == files.weights.stat().st_size
    assert version.parameters == sum(tensor.numel() for tensor in files.tensors().values())
    assert abs(version.created - time.time()) < 60
    assert registry.resolve("tone") == registry.resolve("tone@1") == version
    adapter = registry.load(version.digest, torch.bfloat16)
    assert adapter.digest == version.digest
    assert {delta.a.dtype for delta in adapter.deltas.values()} == {torch.bfloat16}


def test_versions_go_up_and_equal_content_is_not_published_twice(
    registry: Registry, files: AdapterFiles
) -> None:
    first = registry.publish_folder("tone", files.folder)
    assert registry.publish_folder("tone", files.folder) == (first[0], False)
    second, created = registry.publish("tone", files.set(lora_alpha=2), files.weights)
    assert (second.ref, created) == ("tone@2", True)
    third, created = registry.publish("tone", files.set(lora_alpha=8), files.weights)
    assert (third.ref, created, third.digest) == ("tone@3", True, first[0].digest)
    other, _ = registry.publish_folder("other", files.folder)
    assert [version.ref for version in registry.list()] == ["other@1", "tone@1", "tone@2", "tone@3"]
    assert registry.resolve("tone") == third
    assert registry.versions("other") == (other,)
    assert registry.versions("nobody") == ()


def test_what_it_was_trained_on_is_kept_and_a_mismatch_is_in_the_log(
    tmp_path: Path, base: BaseSpec, files: AdapterFiles, caplog: pytest.LogCaptureFixture
) -> None:
    quantised = replace(base, quantization="nf4")
    with Registry(tmp_path / "data", quantised, LIMITS) as registry:
        unknown, _ = registry.publish_folder("tone", files.folder)
        (files.folder / LINEAGE_FILE).write_text('{"quantization": "nf4"}')
        told, created = registry.publish_folder("tone", files.folder)
        assert (unknown.trained_on_quantization, told.trained_on_quantization) == (None, "nf4")
        assert created
        assert told.digest == unknown.digest
        assert registry.publish("tone", files.config, files.weights) == (told, False)
        assert not caplog.records
        registry.publish("tone", files.config, files.weights, quantization="none")
        assert "adapter tone@3: it was trained on its base with quantization none" in caplog.text
        with pytest.raises(InvalidAdapter, match="quantization: 'gptq' is not one of"):
            registry.publish("tone", files.config, files.weights, quantization="gptq")
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        assert [version.trained_on_quantization for version in registry.list()] == [None, "nf4", "none"]


@pytest.mark.parametrize("ref", ["nobody", "tone@2", "TONE", "tone@", "", "../tone", "tone@1@1", "\x00"])
def test_unknown_references(ref: str, registry: Registry, files: AdapterFiles) -> None:
    registry.publish_folder("tone", files.folder)
    with pytest.raises(AdapterNotFound):
        registry.resolve(ref)
    with pytest.raises(AdapterNotFound):
        registry.delete(ref)


def test_bad_uploads_leave_nothing(registry: Registry, files: AdapterFiles, tmp_path: Path) -> None:
    good = files.weights.read_bytes()
    files.weights.write_bytes(good[:-1])
    with pytest.raises(InvalidAdapter, match="truncated"):
        registry.publish_folder("tone", files.folder)
    files.weights.write_bytes(good)
    with pytest.raises(InvalidAdapter, match="has no lora_magnitude_vector beside it"):
        registry.publish("tone", files.set(use_dora=True), files.weights)
    with pytest.raises(InvalidName, match="reserved"):
        registry.publish_folder("latest", files.folder)
    with pytest.raises(InvalidName, match="base model"):
        registry.publish_folder("tiny", files.folder)
    assert registry.list() == ()
    assert blobs(tmp_path) == set()


def test_an_adapter_that_can_never_be_in_memory(tmp_path: Path, base: BaseSpec, files: AdapterFiles) -> None:
    numbers = sum(tensor.numel() for tensor in files.tensors().values())
    for dtype in (torch.bfloat16, torch.float32):
        exact = replace(LIMITS, max_memory_bytes=numbers * dtype.itemsize)
        with Registry(tmp_path / str(dtype), base, exact, dtype) as registry:
            assert registry.publish("fits", files.config, files.weights)[1]
        short = replace(exact, max_memory_bytes=numbers * dtype.itemsize - 1)
        with (
            Registry(tmp_path / str(dtype), base, short, dtype) as registry,
            pytest.raises(AdapterTooLarge, match="raise --adapter-memory-gb"),
        ):
            registry.publish("large", files.config, files.weights)


def test_values_too_large_for_the_type_that_is_served(
    tmp_path: Path, base: BaseSpec, files: AdapterFiles
) -> None:
    tensors = files.tensors()
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key][1, 2] = 60_000.0  # fits float16, twice of it does not
    files.save(tensors)
    files.set(r=4, lora_alpha=4)
    with Registry(tmp_path / "data", base, LIMITS, torch.float16) as registry:
        registry.publish_folder("tone", files.folder)
        files.set(r=4, lora_alpha=8)
        with pytest.raises(InvalidAdapter, match=r"q_proj has values too large for torch\.float16"):
            registry.publish_folder("tone", files.folder)
        assert [version.ref for version in registry.list()] == ["tone@1"]


def test_folders_without_the_files(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match=CONFIG_FILE):
        registry.publish_folder("tone", tmp_path)
    (tmp_path / CONFIG_FILE).write_text("{}")
    with pytest.raises(InvalidAdapter, match=f"holds no {WEIGHTS_FILE}"):
        registry.publish_folder("tone", tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"PK")
    with pytest.raises(InvalidAdapter, match="safe_serialization=True"):
        registry.publish_folder("tone", tmp_path)


def test_limits(tmp_path: Path, base: BaseSpec, files: AdapterFiles) -> None:
    with (
        Registry(tmp_path / "a", base, AdapterLimits(max_file_bytes=100)) as registry,
        pytest.raises(AdapterTooLarge, match="the limit is 100 bytes"),
    ):
        registry.publish_folder("tone", files.folder)
    with Registry(tmp_path / "b", base, AdapterLimits(max_adapters=1)) as registry:
        registry.publish_folder("tone", files.folder)
        assert registry.publish_folder("tone", files.folder)[1] is False
        with pytest.raises(AdapterConflict, match="1 adapter versions are live"):
            registry.publish_folder("other", files.folder)
        registry.delete("tone")
        registry.publish_folder("other", files.folder)


def test_restart_keeps_everything_and_never_reuses_a_number(
    tmp_path: Path, base: BaseSpec, files: AdapterFiles
) -> None:
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        for alpha in (1, 2, 3):
            registry.publish("tone", files.set(lora_alpha=alpha), files.weights)
        assert [version.ref for version in registry.delete("tone@3", force=True)] == ["tone@3"]
        before = registry.list()
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        assert registry.list() == before
        assert registry.resolve("tone").ref == "tone@2"
        assert registry.load(before[0].digest).digest == before[0].digest
        assert [version.ref for version in registry.delete("tone")] == ["tone@1", "tone@2"]
        assert registry.publish_folder("tone", files.folder)[0].ref == "tone@4"


def test_deleted_files_stay_while_held(registry: Registry, files: AdapterFiles, tmp_path: Path) -> None:
    digest = registry.publish_folder("tone", files.folder)[0].digest
    registry.hold(digest)
    registry.hold(digest)
    registry.delete("tone")
    registry.hold(digest)
    assert registry.load(digest).digest == digest
    for _ in range(3):
        assert blobs(tmp_path) == {digest}
        registry.release(digest)
    assert blobs(tmp_path) == set()
    for attempt in (registry.hold, registry.load):
        with pytest.raises(AdapterNotFound):
            attempt(digest)
    with pytest.raises(ValueError, match="is not held"):
        registry.release(digest)


def test_files_stay_while_another_version_has_them(
    registry: Registry, files: AdapterFiles, tmp_path: Path
) -> None:
    digest = registry.publish_folder("one", files.folder)[0].digest
    registry.publish_folder("two", files.folder)
    registry.hold(digest)
    registry.delete("one")
    registry.release(digest)
    assert registry.load(registry.resolve("two").digest).digest == digest
    registry.delete("two")
    assert blobs(tmp_path) == set()


def test_start_sweeps_what_no_version_needs(tmp_path: Path, base: BaseSpec, files: AdapterFiles) -> None:
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        digest = registry.publish_folder("tone", files.folder)[0].digest
        orphan = tmp_path / "data" / "adapters" / ("0" * 64)
        orphan.mkdir()
    with Registry(tmp_path / "data", base, LIMITS):
        assert blobs(tmp_path) == {digest}


def test_versions_of_another_base_are_kept_unseen(
    tmp_path: Path, base: BaseSpec, files: AdapterFiles
) -> None:
    other = replace(base, digest="c" * 64)
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        registry.publish_folder("tone", files.folder)
    with Registry(tmp_path / "data", other, LIMITS) as registry:
        assert registry.list() == ()
        with pytest.raises(AdapterNotFound):
            registry.resolve("tone")
        assert registry.publish_folder("tone", files.folder)[0].ref == "tone@2"
        registry.delete("tone")
    with Registry(tmp_path / "data", base, LIMITS) as registry:
        assert [version.ref for version in registry.list()] == ["tone@1"]
        registry.load(registry.resolve("tone").digest)


def test_damage_on_disk_is_found_and_repaired_by_publishing(
    registry: Registry, files: AdapterFiles, tmp_path: Path
) -> None:
    digest = registry.publish_folder("tone", files.folder)[0].digest
    registry.load(digest)
    weights = tmp_path / "data" / "adapters" / digest / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        InvalidAdapter, match=rf"stored adapter {digest[:12]} can't be loaded: its files were"
    ):
        registry.load(digest)
    weights.write_bytes(content[:-5])
    with pytest.raises(InvalidAdapter, match="truncated"):
        registry.load(digest)
    assert registry.publish_folder("tone", files.folder)[1] is False
    assert registry.load(digest).digest == digest


def test_one_process_at_a_time(registry: Registry, tmp_path: Path, base: BaseSpec) -> None:
    with pytest.raises(AdapterConflict, match="in use by another server"):
        Registry(tmp_path / "data", base, LIMITS)


def test_threads_agree(registry: Registry, files: AdapterFiles, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        config = files.config.replace(b'"lora_alpha": 8', f'"lora_alpha": {seed}'.encode())
        try:
            for _ in range(6):
                name = f"a{chance.randrange(2)}"
                version, _ = registry.publish(name, config, files.weights)
                try:
                    registry.hold(version.digest)
                except AdapterNotFound:
                    continue  # another thread was quicker to delete it
                with suppress(AdapterNotFound):
                    registry.delete(name)
                assert registry.load(version.digest).digest == version.digest
                registry.release(version.digest)
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for name in {version.name for version in registry.list()}:
        registry.delete(name)
    assert blobs(tmp_path) == set()


def _publish_until_killed(
    data: Path, base: BaseSpec, files: AdapterFiles, log: Connection, seed: int
) -> None:
    """Tell of every version once it is published, and of every deletion before it begins."""
    chance = random.Random(seed)
    registry = Registry(data, base, LIMITS)
    while True:
        name = f"a{chance.randrange(3)}"
        if registry.versions(name) and chance.random() < 0.3:
            log.send(("deleting", name))
            registry.delete(name)
        else:
            version, _ = registry.publish(name, files.set(lora_alpha=chance.random()), files.weights)
            log.send(("published", version.ref))


def test_kill_at_any_instant(tmp_path: Path, base: BaseSpec, files: AdapterFiles) -> None:
    # Not forked from here: what other tests have started would not go on in a child.
    chance, processes = random.Random(7), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    live: set[str] = set()
    highest: dict[str, int] = {}
    for seed in range(8):
        receive, send = processes.Pipe(duplex=False)
        # Its own files, which it changes: a kill may tear them.
        own = AdapterFiles(shutil.copytree(files.folder, tmp_path / f"adapter-{seed}"))
        arguments = (tmp_path / "data", base, own, send, seed)
        child = processes.Process(target=_publish_until_killed, args=arguments)
        child.start()
        if seed % 2:
            receive.poll(60)  # so that some rounds publish, however slow the machine
        time.sleep(chance.random() * 0.4)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        doubtful: set[str] = set()
        while receive.poll():
            event, text = receive.recv()
            if event == "deleting":
                doubtful = {ref for ref in live if ref.startswith(f"{text}@")}
                live -= doubtful
            else:
                name, _, number = text.partition("@")
                assert int(number) > highest.get(name, 0)
                highest[name] = int(number)
                live.add(text)
                doubtful = set()
        with Registry(tmp_path / "data", base, LIMITS) as registry:
            found = {version.ref: version for version in registry.list()}
            unsaid = found.keys() - live - doubtful
            assert live <= found.keys()
            assert len(unsaid) <= 1  # published, and killed before it could say so
            assert blobs(tmp_path) == {version.digest for version in found.values()}
            for version in found.values():
                assert registry.load(version.digest).digest == version.digest
        live = set(found)
        send.close()
        receive.close()
    assert highest
