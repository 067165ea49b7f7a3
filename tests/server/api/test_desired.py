"""The engine keeps what the registry wants, from the start on and after every change."""

from __future__ import annotations

import asyncio
from pathlib import Path

from adapters.registry.records import Quota
from server.api.desired import apply_desired
from tests.server.api.stand import Stand, eventually, standing


def test_what_is_wanted_survives_a_restart(tmp_path: Path) -> None:
    with standing(tmp_path) as stand:
        one, two, _ = (version["digest"] for version in stand.publish("shop", 1, 2, 3))
        stand.post("shop@1/pin")
        stand.post("shop@2/preload")
    with standing(tmp_path) as stand:
        assert stand.engine.pinned == {one}
        assert set(stand.engine.prefetched) == {one, two}


def test_a_change_that_another_made_is_followed(stand: Stand) -> None:
    digest = stand.publish("shop", 1)[0]["digest"]
    stand.registry.want("shop", "pinned")  # in a thread that is not the event loop's
    eventually(lambda: stand.engine.pinned == {digest})
    stand.registry.delete("shop")
    eventually(lambda: stand.engine.pinned == set())


def test_what_was_preloaded_and_evicted_is_not_loaded_at_each_change(stand: Stand) -> None:
    digest = stand.publish("shop", 1)[0]["digest"]
    stand.post("shop/preload")
    stand.engine.prefetched.clear()
    stand.publish("other", 2)
    apply_desired(stand.context)

    assert digest not in stand.engine.prefetched


def test_after_the_end_nothing_is_followed(tmp_path: Path) -> None:
    with standing(tmp_path) as stand:
        stand.publish("shop", 1)
        registry = stand.registry
        asyncio.run(_ended(stand))
        registry.want("shop", "pinned")
        assert stand.engine.pinned == set()


def test_weights_of_tenants_are_followed(stand: Stand) -> None:
    assert stand.engine.weights == {"default": 1.0}
    stand.registry.tenants.put("acme", Quota(weight=2.5))
    eventually(lambda: stand.engine.weights == {"default": 1.0, "acme": 2.5})


def test_what_is_pinned_has_its_name_in_the_metrics(stand: Stand) -> None:
    digest = stand.publish("shop", 1)[0]["digest"]
    stand.post("shop/pin")
    eventually(lambda: stand.context.metrics.name(digest) == "shop")


async def _ended(stand: Stand) -> None:
    async with stand.app.router.lifespan_context(stand.app):
        pass
